// What the browser knows of a clip or a sound before it plays.

import { h } from "../dom.js";

/** {width, height, duration}, width and height 0 of a sound alone; null where this browser cannot play it. */
export async function factsOf(file) {
  const video = h("video", { preload: "metadata", muted: true });
  const known = await new Promise((resolve) => {
    video.onloadedmetadata = () => resolve(true);
    video.onerror = () => resolve(false);
    video.src = URL.createObjectURL(file);
  });
  const { videoWidth: width, videoHeight: height, duration } = video;
  URL.revokeObjectURL(video.src);
  video.removeAttribute("src");
  return known ? { width, height, duration } : null;
}
