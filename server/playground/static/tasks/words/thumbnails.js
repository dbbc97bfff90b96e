// Small copies of pictures, which stay in the page.

import { h } from "../../dom.js";

const SIDE = 160; // pixels of the longer one

/** Of a bitmap or canvas; null, for a picture that this browser cannot decode, gives its name. */
export function thumbnail(source, name) {
  if (!source) return h("span", { class: "thumbnail" }, name);
  const scale = Math.min(1, SIDE / Math.max(source.width, source.height));
  const canvas = h("canvas", { class: "thumbnail", role: "img", "aria-label": name });
  canvas.width = Math.max(1, Math.round(source.width * scale));
  canvas.height = Math.max(1, Math.round(source.height * scale));
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** {blob, name, small} of what pictureInput gives: `small` is a canvas, or null. The bitmap, which may be large, is let go. */
export function kept({ blob, name, bitmap }) {
  const small = bitmap && thumbnail(bitmap, name);
  bitmap?.close();
  return { blob, name, small };
}
