// A picture that the user gives.

import { fetchSample, fileInput } from "./file_input.js";

// A picture is {blob, name, bitmap, companion}: `bitmap` is upright, and null where this browser cannot decode it; `companion` is a file that
// a sample brings with it, or null.

/**
 * The place for a picture. samples: as fileInput has them, with the name of a `companion` if there is one; block: as there;
 * onpicture(picture, sample or null).
 * accept: further types of files, and others(file), which takes one of them and says so by true.
 */
export function pictureInput(panel, { samples, stage, block, onpicture, invitation, accept = "", others = null }) {
  const onfile = async (file, sample) => {
    if (!sample && others && (await others(file))) return;
    const companion = sample?.companion ? await fetchSample(sample.companion) : null;
    const bitmap = await createImageBitmap(file).catch(() => null);
    await onpicture({ blob: file, name: file.name || "pasted.png", bitmap, companion }, sample);
  };
  return fileInput(panel, { samples, stage, invitation, accept: `image/*${accept}`, multiple: others !== null, block, onfile });
}

/** Draws a bitmap into a canvas at the bitmap's own size. */
export function show(canvas, bitmap) {
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
}
