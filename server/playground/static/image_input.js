// A picture that the user gives.

import { fetchSample, fileInput } from "./file_input.js";
import { checkFile, checkPixels } from "./file_checks.js";

// A picture is {blob, name, bitmap, companion}: `bitmap` is upright, and null where this browser cannot decode it; `companion` is a file that
// a sample brings with it, or null.

/**
 * The place for a picture. part: of `inputs` in GET /v1/models; samples: as fileInput has them, with the name of a `companion` if there is one;
 * block, onsample: as there; onpicture(picture, sample or null).
 * multiple: whether several may come at once; accept: further types of files, and others(file), which takes one of them and says so by true.
 */
export function pictureInput(
  panel,
  { part, samples, stage, block, onpicture, onsample, invitation, multiple, accept = "", others = null },
) {
  const onfile = async (file, sample) => {
    if (!sample && others && (await others(file))) return;
    await checkFile(file, part, ["image"]);
    const companion = sample?.companion ? await fetchSample(sample.companion) : null;
    const bitmap = await createImageBitmap(file).catch(() => null);
    if (bitmap) checkPixels(file.name, bitmap.width, bitmap.height, part);
    await onpicture({ blob: file, name: file.name || "pasted.png", bitmap, companion }, sample);
  };
  const types = `image/*${accept}`;
  return fileInput(panel, { samples, stage, invitation, accept: types, multiple: multiple ?? others !== null, block, onfile, onsample });
}

/** The part that takes a name, of the models of a tab: its limits are the service's. */
export const partOf = ([{ inputs }], name) => inputs.find((part) => part.name === name);

/** Draws a bitmap into a canvas at the bitmap's own size. */
export function show(canvas, bitmap) {
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
}
