// Checks the type and size of a file before it is sent.

import { bytes } from "./dom.js";

const HEAD = 16; // bytes that identify the kind
const IMAGES = ["89504e47", "ffd8ff", "47494638", "424d", "49492a00", "4d4d002a"]; // PNG, JPEG, GIF, BMP, TIFF
const CLIPS = ["1a45dfa3", "000001b", "47494638", "4f676753"]; // Matroska and WebM, MPEG, GIF, Ogg
const SOUNDS = ["664c6143", "494433", "fffb", "fff3", "fff2", "fff1", "fff9", "63616666", "4f676753"]; // FLAC, MP3, AAC, CAF, Ogg
const CALLED = { image: "an image", clip: "a clip", sound: "a sound" };
const RIFF = { "WEBP": "image", "WAVE": "sound" }; // else AVI

/** The kinds that a file may be: "image", "clip", "sound", "map" (of depth or points); none for unknown files. */
export async function kindsOf(file) {
  const head = new Uint8Array(await file.slice(0, HEAD).arrayBuffer());
  const text = String.fromCharCode(...head);
  const hex = [...head].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  if (text.startsWith("\x93NUMPY")) return ["map"];
  if (text.startsWith("RIFF")) return [RIFF[text.slice(8, 12)] ?? "clip"];
  if (text.startsWith("FORM")) return ["sound"];
  if (text.slice(4, 8) === "ftyp") return [/^(avi|hei|mif|hev)/.test(text.slice(8, 12)) ? "image" : text.startsWith("M4A", 8) ? "sound" : "clip"];
  const kinds = [];
  if (IMAGES.some((signature) => hex.startsWith(signature))) kinds.push("image");
  if (CLIPS.some((signature) => hex.startsWith(signature))) kinds.push("clip");
  if (SOUNDS.some((signature) => hex.startsWith(signature))) kinds.push("sound");
  if (!kinds.length && file.type.startsWith("image/")) kinds.push("image");
  if (!kinds.length && file.type.startsWith("video/")) kinds.push("clip");
  if (!kinds.length && file.type.startsWith("audio/")) kinds.push("sound");
  return kinds;
}

/** The reason why a file is rejected; `tasks`: the tabs that accept it. */
export class FileRejected extends Error {
  constructor(words, ...tasks) {
    super(words);
    this.tasks = tasks;
  }
}

/** part: of `inputs` in GET /v1/models; wanted: kinds that it may be. Raises FileRejected. */
export async function checkFile(file, part, wanted) {
  const name = file.name || "This file";
  const kinds = await kindsOf(file);
  if (!kinds.some((kind) => wanted.includes(kind))) {
    if (kinds.includes("clip")) throw new FileRejected(`${name} is a clip.`, "actions", "clips");
    if (kinds.includes("sound")) throw new FileRejected(`${name} is a sound.`, "clips");
    if (kinds.includes("image")) throw new FileRejected(`${name} is an image.`, "classify");
    if (kinds.includes("map")) throw new FileRejected(`${name} is a depth or point map.`, "reconstruct");
    throw new FileRejected(`${name} has an unsupported format. Choose ${wanted.map((kind) => CALLED[kind]).join(" or ")}.`);
  }
  if (file.size === 0) throw new FileRejected(`${name} is empty.`);
  if (file.size > part.max_bytes) throw new FileRejected(`${name} has ${bytes(file.size)}; this service accepts at most ${bytes(part.max_bytes)}.`);
}

/** Raises FileRejected for more pixels than the service accepts: of an image, or of a frame of a clip. */
export function checkPixels(name, width, height, part) {
  if (part.max_pixels && width * height > part.max_pixels)
    throw new FileRejected(`${name} has ${width} × ${height} pixels; this service accepts at most ${part.max_pixels / 1e6} million pixels.`);
}

/** Raises FileRejected for a clip or a sound that is longer than the service accepts. duration: infinite of what a browser has recorded, which the service measures. */
export function checkDuration(name, duration, part) {
  if (part.max_seconds && Number.isFinite(duration) && duration > part.max_seconds)
    throw new FileRejected(`${name} is ${duration.toFixed(0)} s long; this service accepts at most ${part.max_seconds} s.`);
}
