// Points as the service writes them: binary PLY of float x, y, z and uchar red, green, blue.

const ROW = 15; // bytes
const HEAD = 1024; // more than a header is long

/** {count, positions: Float32Array (3 a point, the camera's frame), colours: Uint8Array (3 a point), pitch}: the distance between cells. */
export async function readPly(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const head = new TextDecoder("latin1").decode(bytes.subarray(0, HEAD));
  const start = head.indexOf("end_header\n") + 11;
  const count = Number(head.match(/element vertex (\d+)/)[1]);
  const view = new DataView(bytes.buffer);
  const positions = new Float32Array(3 * count);
  const colours = new Uint8Array(3 * count);
  for (let point = 0; point < count; point++) {
    const at = start + ROW * point;
    for (let axis = 0; axis < 3; axis++) positions[3 * point + axis] = view.getFloat32(at + 4 * axis, true);
    colours.set(bytes.subarray(at + 12, at + ROW), 3 * point);
  }
  return { count, positions, colours, pitch: pitchOf(positions) };
}

/** Points lie on a grid: the smallest step between two of its planes. */
function pitchOf(positions) {
  const x = positions.filter((_, index) => index % 3 === 0).sort();
  const least = 1e-4 * (x[x.length - 1] - x[0]);
  let pitch = Infinity;
  for (let index = 1; index < x.length; index++) {
    const step = x[index] - x[index - 1];
    if (step > least && step < pitch) pitch = step;
  }
  return Number.isFinite(pitch) ? pitch : 0.01;
}
