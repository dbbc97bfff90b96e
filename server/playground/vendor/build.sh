#!/bin/sh
# Bundle what the playground uses of three.js into one file with its licence beside it: `build.sh [FOLDER]`, by default ../static/vendor.
# Needs Node.js and npm. The same versions make the same bytes; tests/browser/test_vendor.py checks it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mkdir -p "${1:-$here/../static/vendor}" && cd "${1:-$here/../static/vendor}" && pwd)
three=0.187.0 esbuild=0.28.2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-save --no-audit --no-fund --ignore-scripts --prefix "$work" "three@$three" "esbuild@$esbuild"
cp "$here/three.js" entry.js
node_modules/.bin/esbuild entry.js --bundle --minify --format=esm --target=es2022 --legal-comments=none --log-level=warning \
    --banner:js="/* three.js $three, MIT, see three.LICENSE.txt */" --outfile="$folder/three.js"
cp node_modules/three/LICENSE "$folder/three.LICENSE.txt"
