// Points and meshes in space, drawn by three.js. Loaded when there is something to draw.

import {
  Box3,
  BufferAttribute,
  BufferGeometry,
  DoubleSide,
  GLTFLoader,
  GridHelper,
  Group,
  HemisphereLight,
  LinearSRGBColorSpace,
  MeshBasicMaterial,
  MeshLambertMaterial,
  NoColorSpace,
  OrbitControls,
  PerspectiveCamera,
  Points,
  PointsMaterial,
  Scene,
  Spherical,
  Vector3,
  WebGLRenderer,
} from "../../vendor/three.js";
import { SHARE, TINT } from "./ply.js";

const FROM = new Vector3(0.35, 0.3, 1); // where the camera stands at first: near where the picture was taken, a little aside and above
const GRID_LINES = 10;

export class Stage3D {
  #scene = new Scene();
  #camera = new PerspectiveCamera(35, 1, 0.01, 1000);
  #points = new Group(); // the camera's frame: y down, z forward
  #mesh = new Group(); // glTF's frame
  #grid = new Group();
  #moved = false;
  #size = 1;
  #frame = 0;

  constructor(canvas) {
    this.renderer = new WebGLRenderer({ canvas, antialias: true, alpha: true });
    this.renderer.outputColorSpace = LinearSRGBColorSpace; // colours arrive as they are to be shown
    this.#points.scale.set(1, -1, -1);
    this.#scene.add(this.#points, this.#mesh, this.#grid, new HemisphereLight(0xffffff, 0x8a8a8a, Math.PI));
    this.controls = new OrbitControls(this.#camera, canvas);
    this.controls.addEventListener("change", () => this.draw());
    this.controls.addEventListener("start", () => (this.#moved = true));
    new ResizeObserver(() => this.#fit(canvas)).observe(canvas);
    this.#fit(canvas);
  }

  points({ positions, colours, seen, pitch, fine }) {
    empty(this.#points);
    for (const [first, last, distance] of [
      [0, 3 * seen, fine],
      [3 * seen, positions.length, pitch],
    ]) {
      if (first === last) continue;
      const geometry = new BufferGeometry();
      geometry.setAttribute("position", new BufferAttribute(positions.subarray(first, last), 3));
      geometry.setAttribute("color", new BufferAttribute(colours.subarray(first, last), 3, true));
      const points = new Points(geometry, new PointsMaterial({ vertexColors: true, size: 1 }));
      points.userData.pitch = distance;
      this.#points.add(points);
    }
    this.pointSize(this.#size);
    this.#arrange(this.#points);
  }

  /** glb: an ArrayBuffer. */
  async mesh(glb) {
    const { scene } = await new GLTFLoader().parseAsync(glb, "");
    scene.traverse((part) => {
      if (!part.isMesh) return;
      part.geometry.computeVertexNormals();
      encode(part.geometry.attributes.color);
      part.material = drawn(part.material);
    });
    replace(this.#mesh, scene);
  }

  clear() {
    for (const group of [this.#points, this.#mesh, this.#grid]) empty(group);
    this.#moved = false;
    this.draw();
  }

  show(kind) {
    this.#points.visible = kind === "points";
    this.#mesh.visible = kind === "mesh";
    this.draw();
  }

  /** Of a point, as a share of the distance between cells. */
  pointSize(size) {
    this.#size = size;
    for (const { material, userData } of this.#points.children) material.size = size * userData.pitch;
    this.draw();
  }

  grid(shown) {
    this.#grid.visible = shown;
    this.draw();
  }

  turn(on) {
    this.controls.autoRotate = on;
    cancelAnimationFrame(this.#frame);
    const next = () => {
      if (this.renderer.domElement.clientWidth) this.controls.update(); // else it is out of sight
      this.#frame = requestAnimationFrame(next);
    };
    if (on) this.#frame = requestAnimationFrame(next);
  }

  reset() {
    this.#moved = false;
    this.#arrange(this.#points);
  }

  /** Around the middle, by radians. */
  rotate(across, down) {
    const offset = new Spherical().setFromVector3(this.#camera.position.clone().sub(this.controls.target));
    offset.theta -= across;
    offset.phi -= down;
    this.#look(offset.makeSafe());
  }

  zoom(factor) {
    const offset = new Spherical().setFromVector3(this.#camera.position.clone().sub(this.controls.target));
    offset.radius /= factor;
    this.#look(offset);
  }

  draw() {
    this.renderer.render(this.#scene, this.#camera);
  }

  /** A PNG of what is seen now. */
  picture() {
    this.draw(); // the buffer is gone after the frame in which it was drawn
    return new Promise((resolve) => this.renderer.domElement.toBlob(resolve));
  }

  #look(offset) {
    this.#moved = true;
    this.#camera.position.setFromSpherical(offset).add(this.controls.target);
    this.controls.update();
    this.draw();
  }

  /** Camera and grid around what there is, unless the user has chosen where to look from. */
  #arrange(group) {
    group.updateMatrixWorld(true);
    const box = new Box3().setFromObject(group);
    if (box.isEmpty()) return this.draw();
    const [middle, size] = [box.getCenter(new Vector3()), box.getSize(new Vector3())];
    const across = Math.max(size.x, size.z) * 1.25 || 1;
    const grid = new GridHelper(across, GRID_LINES, 0x888888, 0x888888);
    grid.material.opacity = 0.35;
    grid.material.transparent = true;
    grid.position.set(middle.x, box.min.y, middle.z);
    replace(this.#grid, grid);
    if (!this.#moved) {
      const away = size.length() / 2 / Math.sin((this.#camera.fov * Math.PI) / 360) / Math.min(1, this.#camera.aspect);
      this.controls.target.copy(middle);
      this.#camera.position.copy(FROM).normalize().multiplyScalar(away).add(middle);
      this.#camera.near = away / 100;
      this.#camera.far = away * 100;
      this.#camera.updateProjectionMatrix();
      this.controls.update();
    }
    this.draw();
  }

  #fit(canvas) {
    if (!canvas.clientWidth) return;
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    this.renderer.setSize(canvas.clientWidth, canvas.clientHeight, false);
    this.#camera.aspect = canvas.clientWidth / canvas.clientHeight;
    this.#camera.updateProjectionMatrix();
    this.draw();
  }
}

/** glTF's colours are linear light, to be shown as sRGB. */
function encode(colours) {
  if (colours) colours.array = colours.array.map((light) => (light <= 0.0031308 ? 12.92 * light : 1.055 * light ** (1 / 2.4) - 0.055));
}

/** What was seen as the photograph shows it; a guess tinted. */
function drawn({ name, map }) {
  if (name === "seen") {
    map.colorSpace = NoColorSpace;
    return new MeshBasicMaterial({ map, side: DoubleSide });
  }
  const material = new MeshLambertMaterial({ vertexColors: true, side: DoubleSide });
  if (name !== "guessed") return material;
  material.color.setScalar(1 - SHARE);
  material.emissive.fromArray(TINT.map((channel) => (SHARE * channel) / 255));
  return material;
}

function replace(group, object) {
  empty(group);
  group.add(object);
}

function empty(group) {
  group.traverse((part) => {
    part.geometry?.dispose();
    part.material?.dispose();
  });
  group.clear();
}
