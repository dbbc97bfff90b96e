// The frames that a network saw of a clip, side by side.

import { h } from "../../dom.js";
import { drawSquare } from "../square_crop.js";

const TILE = 160; // pixels of a frame's side
const LATE = 1 / 120; // seconds behind the begin of a frame, where rounding does not show the one before

/** How many frames stand beside and below each other. */
export const layoutOf = (count) => {
  const across = Math.min(4, count);
  return { across, down: Math.ceil(count / across) };
};

/**
 * A canvas of frames. file: the clip, or null; seconds: of each frame; preprocess: of the bundle. Where the browser cannot show them it stays grey.
 */
export async function framesOf(file, seconds, preprocess) {
  const { across, down } = layoutOf(seconds.length);
  const canvas = h("canvas", { width: across * TILE, height: down * TILE });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#8884";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (!file) return canvas;
  const video = h("video", { muted: true, playsInline: true, preload: "auto" });
  const url = URL.createObjectURL(file);
  try {
    if (!(await happens(video, "loadeddata", () => (video.src = url))) || !video.videoWidth) return canvas;
    for (const [index, at] of seconds.entries()) {
      if (!(await happens(video, "seeked", () => (video.currentTime = Math.min(at + LATE, video.duration || at))))) break;
      const corner = [(index % across) * TILE, Math.floor(index / across) * TILE];
      drawSquare(context, video, video.videoWidth, video.videoHeight, preprocess, corner, TILE);
    }
  } finally {
    video.removeAttribute("src");
    video.load();
    URL.revokeObjectURL(url);
  }
  return canvas;
}

/** Whether it does, rather than fail. */
function happens(media, name, begin) {
  return new Promise((resolve) => {
    media.addEventListener(name, () => resolve(true), { once: true });
    media.addEventListener("error", () => resolve(false), { once: true });
    begin();
  });
}
