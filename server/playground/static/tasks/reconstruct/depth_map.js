// Maps of depth or points as users have them, 16-bit PNG or .npy, read to be shown: what is sent is the file itself.

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const HEAD = 26; // bytes of a PNG up to its colour type
const NUMBERS = { f4: Float32Array, f8: Float64Array, u2: Uint16Array };

/** Whether a file is a map rather than a picture: .npy, or a PNG of 16 bits in one channel. */
export async function isMap(file) {
  if (file.name.endsWith(".npy")) return true;
  const head = new Uint8Array(await file.slice(0, HEAD).arrayBuffer());
  return SIGNATURE.every((byte, index) => head[index] === byte) && head[24] === 16 && head[25] === 0;
}

/** {width, height, part: "depth" or "points", depth}: `depth` as it stands in the file, row by row. null for what cannot be read here. */
export async function readMap(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  try {
    return bytes[0] === SIGNATURE[0] ? await readPng(bytes) : readNpy(bytes);
  } catch {
    return null;
  }
}

/** Paints depth into a canvas, near bright and far dark; the unseen stays clear. Returns [nearest, farthest, share seen] or null. */
export function showMap(canvas, { width, height, depth }) {
  const seen = depth.filter((value) => value > 0 && Number.isFinite(value)).sort();
  canvas.width = width;
  canvas.height = height;
  if (!seen.length) return null;
  const [near, far] = [seen[0], seen[seen.length - 1]];
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  depth.forEach((value, index) => {
    if (!(value > 0 && Number.isFinite(value))) return;
    const bright = 255 - 205 * ((value - near) / (far - near || 1));
    image.data.set([0.55 * bright, 0.75 * bright, bright, 255], 4 * index);
  });
  context.putImageData(image, 0, 0);
  return [near, far, seen.length / depth.length];
}

async function readPng(bytes) {
  const view = new DataView(bytes.buffer);
  const [width, height, interlaced] = [view.getUint32(16), view.getUint32(20), bytes[28]];
  if (interlaced) return null;
  const pieces = [];
  for (let at = 8; at + 8 <= bytes.length; at += 12 + view.getUint32(at)) {
    if (String.fromCharCode(...bytes.subarray(at + 4, at + 8)) === "IDAT") pieces.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at)));
  }
  const inflated = new Blob(pieces).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(inflated).arrayBuffer());
  const stride = 2 * width;
  const depth = new Float32Array(width * height);
  let above = new Uint8Array(stride);
  for (let y = 0; y < height; y++) {
    const row = unfiltered(rows[y * (stride + 1)], rows.slice(y * (stride + 1) + 1, (y + 1) * (stride + 1)), above);
    for (let x = 0; x < width; x++) depth[y * width + x] = 256 * row[2 * x] + row[2 * x + 1];
    above = row;
  }
  return { width, height, part: "depth", depth };
}

/** A row of PNG, of two bytes a pixel, without its filter. */
function unfiltered(filter, row, above) {
  for (let index = 0; index < row.length; index++) {
    const [left, up, corner] = [row[index - 2] ?? 0, above[index], above[index - 2] ?? 0];
    row[index] += [0, left, up, (left + up) >> 1, filter === 4 ? paeth(left, up, corner) : 0][filter];
  }
  return row;
}

function paeth(left, up, corner) {
  const [a, b, c] = [left, up, corner].map((value) => Math.abs(left + up - corner - value));
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

function readNpy(bytes) {
  const long = bytes[6] > 1; // from version 2 on the header's length has four bytes
  const view = new DataView(bytes.buffer);
  const start = long ? 12 + view.getUint32(8, true) : 10 + view.getUint16(8, true);
  const header = new TextDecoder().decode(bytes.subarray(long ? 12 : 10, start));
  const shape = header
    .match(/\(([^)]*)\)/)[1]
    .split(",")
    .map(Number)
    .filter(Boolean);
  const Numbers = NUMBERS[header.match(/'<(\w\d)'/)[1]];
  if (header.includes("'fortran_order': True") || !(shape.length === 2 || (shape.length === 3 && shape[2] === 3))) return null;
  const [height, width, channels = 1] = shape;
  const values = new Numbers(bytes.buffer.slice(start));
  const depth = Float32Array.from({ length: width * height }, (_, index) => values[index * channels + channels - 1]);
  return { width, height, part: channels === 3 ? "points" : "depth", depth };
}
