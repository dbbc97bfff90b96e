// Points as the service writes them: binary PLY of float x, y, z and uchar red, green, blue, and, if the file tells, uchar seen.

const ROW = 15; // bytes, without `seen`
const HEAD = 1024; // more than a header is long
export const TINT = [70, 130, 255]; // of guesses
export const SHARE = 0.3; // of the tint

/**
 * {count, positions: Float32Array (3 a point, the camera's frame), colours: Uint8Array (3 a point, guesses tinted), seen: the number of
 * points that were seen, which come first, pitch: the distance between the others, fine: the distance between those that were seen}.
 */
export async function readPly(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const head = new TextDecoder("latin1").decode(bytes.subarray(0, HEAD));
  const start = head.indexOf("end_header\n") + 11;
  const number = (pattern) => Number(head.match(pattern)?.[1] ?? 0);
  const count = number(/element vertex (\d+)/);
  const tells = head.includes("property uchar seen\n");
  const row = tells ? ROW + 1 : ROW;
  const view = new DataView(bytes.buffer);
  const positions = new Float32Array(3 * count);
  const colours = new Uint8Array(3 * count);
  let seen = 0;
  for (let point = 0; point < count; point++) {
    const at = start + row * point;
    for (let axis = 0; axis < 3; axis++) positions[3 * point + axis] = view.getFloat32(at + 4 * axis, true);
    const guessed = tells && !bytes[at + ROW];
    if (tells && !guessed) seen++;
    for (let channel = 0; channel < 3; channel++) {
      const colour = bytes[at + 12 + channel];
      colours[3 * point + channel] = guessed ? colour + SHARE * (TINT[channel] - colour) : colour;
    }
  }
  return { count, positions, colours, seen, pitch: number(/comment spacing (\S+)/), fine: number(/comment seen_spacing (\S+)/) };
}
