// The canvas for drawing a digit, and for showing an image file.

const STROKE = 44; // width in pixels of the canvas, which is 560 wide: as thick as MNIST's strokes
const SENT = 200; // height and width of the image that is sent: shows all strokes, and is fast to process
const STEP = 14; // pixels that an arrow key moves the pen

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Pad {
  /**
   * @param {HTMLCanvasElement} canvas the canvas
   * @param {HTMLElement} pen marks the position of the keyboard's pen
   * @param {boolean} drawing whether drawing is possible, or only image files are shown
   * @param {function(): void} changed called after each segment of a stroke
   */
  constructor(canvas, pen, drawing, changed) {
    this.canvas = canvas;
    this.pen = pen;
    this.changed = changed;
    this.context = canvas.getContext("2d");
    this.position = [canvas.width / 2, canvas.height / 2];
    this.down = false; // whether the keyboard's pen is lowered
    this.clear();
    if (drawing) this.takeStrokes();
  }

  clear() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.canvas.classList.remove("picture");
    this.empty = true;
    this.kind = "drawing";
  }

  /** Returns the drawing as a PNG file, or null if the canvas is empty. */
  image() {
    if (this.empty) return Promise.resolve(null);
    const copy = document.createElement("canvas");
    copy.width = copy.height = SENT;
    const context = copy.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.canvas, 0, 0, SENT, SENT);
    return new Promise((resolve) => copy.toBlob(resolve, "image/png"));
  }

  /** Shows an image file, scaled to fit, if the browser can decode its format. */
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
      // The service may be able to decode it nevertheless.
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
      for (const move of event.getCoalescedEvents?.() ?? [event]) {
        const position = this.place(move);
        this.stroke(last, position);
        last = position;
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

  /** Returns the position of an event in pixels of the canvas. */
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
    context.arc(...to, STROKE / 2, 0, 2 * Math.PI); // a line of zero length draws nothing
    context.fill();
    this.empty = false;
    this.changed();
  }
}
