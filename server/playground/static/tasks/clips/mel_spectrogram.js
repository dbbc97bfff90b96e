// Log-mel spectrograms in the browser, to look at: the network computes its own.

const RATE = 16_000; // samples a second
const [FRAME, HOP, SIZE] = [400, 160, 512]; // samples of a frame, from one to the next, and of the transform
const DEPTH = 14; // of ln(energy) below the loudest: what is softer is black
const AT_ONCE = 1000; // frames, before the page may do something else
const COLOURS = [
  [23, 20, 31],
  [91, 63, 196],
  [240, 179, 91],
  [255, 250, 235],
];
export const FRAMES_S = RATE / HOP;

/** {frames, bins, levels}: 0 to 255 of each bin of each frame, low bins first; null where this browser cannot decode the file. */
export async function melOf(file, bins) {
  const samples = await mono(file);
  if (!samples) return null;
  const frames = Math.max(1, 1 + Math.floor((samples.length - FRAME) / HOP));
  const [transform, filters] = [new Transform(), triangles(bins)];
  const energies = new Float32Array(frames * bins);
  for (let frame = 0; frame < frames; frame++) {
    if (frame % AT_ONCE === AT_ONCE - 1) await new Promise((resolve) => setTimeout(resolve));
    const power = transform.power(samples, frame * HOP);
    filters.forEach((filter, bin) => {
      let sum = 1e-10;
      for (const [index, weight] of filter) sum += weight * power[index];
      energies[frame * bins + bin] = Math.log(sum);
    });
  }
  const loudest = energies.reduce((most, energy) => Math.max(most, energy), -Infinity);
  return { frames, bins, levels: Uint8ClampedArray.from(energies, (energy) => 255 * (1 - (loudest - energy) / DEPTH)) };
}

/** `count` frames from one on, a pixel for each frame and bin, low bins at the bottom. Beyond the end it is black. */
export function drawMel(canvas, { frames, bins, levels }, from, count) {
  [canvas.width, canvas.height] = [count, bins];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(count, bins);
  for (let x = 0; x < count; x++)
    for (let bin = 0; bin < bins; bin++) {
      const level = from + x < frames ? levels[(from + x) * bins + bin] : 0;
      image.data.set(colour(level), 4 * ((bins - 1 - bin) * count + x));
    }
  context.putImageData(image, 0, 0);
}

/** Channels are resampled, then averaged, as by the service. */
async function mono(file) {
  try {
    const buffer = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
    const sum = new Float32Array(buffer.length);
    for (let channel = 0; channel < buffer.numberOfChannels; channel++)
      buffer.getChannelData(channel).forEach((value, index) => (sum[index] += value / buffer.numberOfChannels));
    return sum;
  } catch {
    return null;
  }
}

function colour(level) {
  const place = (level / 255) * (COLOURS.length - 1);
  const index = Math.min(COLOURS.length - 2, Math.floor(place));
  const mixed = COLOURS[index].map((from, channel) => from + (COLOURS[index + 1][channel] - from) * (place - index));
  return [...mixed, 255];
}

/** For each bin [[index of the spectrum, weight], …], evenly over mel from 20 Hz to half the rate. */
function triangles(bins) {
  const mel = (hertz) => 1127 * Math.log(1 + hertz / 700);
  const [low, high] = [mel(20), mel(RATE / 2)];
  const step = (high - low) / (bins + 1);
  return Array.from({ length: bins }, (_, bin) => {
    const filter = [];
    for (let index = 1; index <= SIZE / 2; index++) {
      const place = (mel((index * RATE) / SIZE) - low) / step - bin; // 0 to 2 over the triangle
      const weight = 1 - Math.abs(place - 1);
      if (weight > 0) filter.push([index, weight]);
    }
    return filter;
  });
}

/** A fast Fourier transform of SIZE samples, of which FRAME are a frame's. */
class Transform {
  #real = new Float32Array(SIZE);
  #imaginary = new Float32Array(SIZE);
  #order = Uint16Array.from({ length: SIZE }, (_, index) => parseInt(index.toString(2).padStart(Math.log2(SIZE), "0").split("").reverse().join(""), 2));
  #cosines = Float32Array.from({ length: SIZE / 2 }, (_, index) => Math.cos((2 * Math.PI * index) / SIZE));
  #sines = Float32Array.from({ length: SIZE / 2 }, (_, index) => Math.sin((2 * Math.PI * index) / SIZE));
  #window = Float32Array.from({ length: FRAME }, (_, index) => 0.5 - 0.5 * Math.cos((2 * Math.PI * index) / (FRAME - 1)));

  /** |X|² up to half the rate; overwritten by the next. */
  power(samples, begin) {
    const [real, imaginary] = [this.#real, this.#imaginary];
    this.#order.forEach((from, index) => (real[index] = from < FRAME ? (samples[begin + from] ?? 0) * this.#window[from] : 0));
    imaginary.fill(0);
    for (let half = 1; half < SIZE; half *= 2) {
      const stride = SIZE / (2 * half);
      for (let start = 0; start < SIZE; start += 2 * half)
        for (let index = start, turn = 0; index < start + half; index++, turn += stride) {
          const [cosine, sine] = [this.#cosines[turn], this.#sines[turn]];
          const [r, i] = [real[index + half], imaginary[index + half]];
          const [x, y] = [r * cosine + i * sine, i * cosine - r * sine];
          real[index + half] = real[index] - x;
          imaginary[index + half] = imaginary[index] - y;
          real[index] += x;
          imaginary[index] += y;
        }
    }
    for (let index = 0; index <= SIZE / 2; index++) real[index] = real[index] ** 2 + imaginary[index] ** 2;
    return real;
  }
}
