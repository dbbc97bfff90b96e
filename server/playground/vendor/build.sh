#!/bin/sh
# Bundle what the playground uses of three.js into one file, and take Swagger UI as it is published; their licences lie beside them:
# `build.sh [FOLDER]`, by default ../static/vendor. Needs Node.js and npm. The same versions make the same bytes; tests/browser/test_vendor.py
# checks it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mkdir -p "${1:-$here/../static/vendor}" && cd "${1:-$here/../static/vendor}" && pwd)
three=0.187.0 esbuild=0.28.2 swagger=5.35.0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-save --no-audit --no-fund --ignore-scripts --prefix "$work" \
    "three@$three" "esbuild@$esbuild" "swagger-ui-dist@$swagger"
cp "$here/three.js" entry.js
node_modules/.bin/esbuild entry.js --bundle --minify --format=esm --target=es2022 --legal-comments=none --log-level=warning \
    --banner:js="/* three.js $three, MIT, see three.LICENSE.txt */" --outfile="$folder/three.js"
cp node_modules/three/LICENSE "$folder/three.LICENSE.txt"

cd node_modules/swagger-ui-dist
cp swagger-ui-bundle.js swagger-ui-bundle.js.LICENSE.txt swagger-ui.css "$folder"
cp favicon-32x32.png "$folder/swagger-ui.png"
cat NOTICE LICENSE >"$folder/swagger-ui.LICENSE.txt"
