// Which patches of a picture were one token after each block of the network.

import { squareOf } from "../square_crop.js";
import { tokenView } from "../token_view.js";

const SIDE = 448; // pixels of the view, whatever the network sees

/** merging: of an answer with a trace; preprocess: of the bundle, to show the part of the picture that the network saw. */
export function mergedView(bitmap, merging, preprocess) {
  const { grid, layers } = merging.trace;
  return tokenView({
    title: "Merged tokens",
    seen: squareOf(bitmap, bitmap.width, bitmap.height, preprocess, SIDE),
    grid,
    layers,
    special: merging.tokens_in - grid[0] * grid[1], // class and register tokens are never merged
    unit: "image",
  });
}
