// The field that one draws on, and on which a picture is shown.

const STROKE = 44; // pixels of the canvas, which is 560 wide: as thick as MNIST's strokes
const SENT = 200; // pixels of the side of what is sent: enough to see all strokes, and soon looked through
const STEP = 14; // how far an arrow key moves the pen

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Pad {
  /**
   * @param {HTMLCanvasElement} canvas where one draws
   * @param {HTMLElement} pen shows where the pen is that the keyboard moves
   * @param {boolean} drawing whether one can draw, or only pictures are shown
   * @param {function(): void} changed is called after each stroke, however short
   */
  constructor(canvas, pen, drawing, changed) {
    this.canvas = canvas;
    this.pen = pen;
    this.changed = changed;
    this.context = canvas.getContext("2d");
    this.position = [canvas.width / 2, canvas.height / 2];
    this.down = false; // whether the keyboard's pen is
    this.clear();
    if (drawing) this.takeStrokes();
  }

  clear() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.canvas.classList.remove("picture");
    this.empty = true;
    this.kind = "drawing";
  }

  /** The drawing as a PNG file, or null if there is none. */
  image() {
    if (this.empty) return Promise.resolve(null);
    const copy = document.createElement("canvas");
    copy.width = copy.height = SENT;
    const context = copy.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.canvas, 0, 0, SENT, SENT);
    return new Promise((resolve) => copy.toBlob(resolve, "image/png"));
  }

  /** Shows as much as fits of a picture, if the browser knows its format. */
  async showPicture(file) {
    this.clear();
    this.kind = "picture";
    this.empty = false;
    this.canvas.classList.add("picture");
    try {
      const picture = await createImageBitmap(file);
      const { width, height } = this.canvas;
      const scale = Math.min(width / picture.width, height / picture.height);
      const [w, h] = [picture.width * scale, picture.height * scale];
      this.context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
    } catch {
      // The service may know it nevertheless.
    }
  }

  takeStrokes() {
    const { canvas } = this;
    canvas.classList.add("drawing");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", "Drawing field");
    canvas.setAttribute("aria-describedby", "help");
    let last = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      last = this.place(event);
      this.stroke(last, last);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (last === null) return;
      for (const one of event.getCoalescedEvents?.() ?? [event]) {
        const now = this.place(one);
        this.stroke(last, now);
        last = now;
      }
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (last = null));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.showPen(canvas.matches(":focus-visible")));
    canvas.addEventListener("blur", () => this.showPen(false));
  }

  key(event) {
    const arrow = ARROWS[event.key];
    if (!arrow && event.key !== " ") return;
    event.preventDefault(); // no scrolling
    const from = this.position;
    if (arrow) {
      const limits = [this.canvas.width, this.canvas.height];
      this.position = from.map((at, axis) => Math.min(Math.max(at + STEP * arrow[axis], 0), limits[axis]));
    } else {
      this.down = !this.down;
    }
    this.showPen(true);
    if (this.down) this.stroke(from, this.position);
  }

  showPen(visible) {
    this.pen.hidden = !visible;
    this.pen.classList.toggle("down", this.down);
    this.pen.style.left = `${(100 * this.position[0]) / this.canvas.width}%`;
    this.pen.style.top = `${(100 * this.position[1]) / this.canvas.height}%`;
  }

  /** Where an event is on the canvas, in its own pixels. */
  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) * this.canvas.width) / box.width,
      ((event.clientY - box.top) * this.canvas.height) / box.height,
    ];
  }

  stroke(from, to) {
    if (this.kind === "picture") this.clear();
    const { context } = this;
    context.lineWidth = STROKE;
    context.lineCap = "round";
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
    context.beginPath();
    context.arc(...to, STROKE / 2, 0, 2 * Math.PI); // a line of no length leaves no dot
    context.fill();
    this.empty = false;
    this.changed();
  }
}
