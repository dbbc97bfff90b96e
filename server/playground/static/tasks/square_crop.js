// The part of a picture, or of a frame, that a network sees.

import { h } from "../dom.js";

/** As a square canvas of `side` pixels. image: whatever a canvas draws, of this width and height; preprocess: of the bundle. */
export function squareOf(image, width, height, preprocess, side) {
  const canvas = h("canvas", { width: side, height: side });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // the service lays transparent pictures on white, too
  context.fillRect(0, 0, side, side);
  drawSquare(context, image, width, height, preprocess, [0, 0], side);
  return canvas;
}

/** The same into a canvas, at a corner [x, y]. */
export function drawSquare(context, image, width, height, { fit, image_size: size, short_side: short }, [x, y], side) {
  const share = fit === "squeeze" ? 1 : size / short;
  const shorter = Math.min(width, height);
  const [across, down] = (fit === "crop" ? [shorter, shorter] : [width, height]).map((length) => length * share);
  context.drawImage(image, (width - across) / 2, (height - down) / 2, across, down, x, y, side, side);
}
