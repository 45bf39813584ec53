// The brush: a canvas over the picture, at the picture's own size. What is painted is drawn anew.

const COLOUR = "#2f6bff";
const UNDOS = 20;

/** brush(): {size in the picture's pixels, erase}. changed(): called after each change. */
export class Mask {
  constructor(board, { width, height }, brush, changed) {
    this.canvas = Object.assign(document.createElement("canvas"), { width, height, tabIndex: 0 });
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute(
      "aria-label",
      "Mask: paint with the pointer, or move the brush with the arrow keys and paint with the space bar",
    );
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
    this.brush = brush;
    this.changed = changed;
    this.past = [];
    this.at = [width / 2, height / 2];
    board.append(this.canvas, this.tip);
    this.#listen();
  }

  #listen() {
    const { canvas } = this;
    let last = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      this.#remember();
      last = this.#place(event);
      this.#stroke(last, last);
    });
    canvas.addEventListener("pointermove", (event) => {
      const between = event.getCoalescedEvents?.() ?? [];
      for (const each of between.length ? between : [event]) {
        this.at = this.#place(each);
        if (last) (this.#stroke(last, this.at), (last = this.at));
      }
      this.#point();
    });
    const end = () => {
      if (last) this.changed();
      last = null;
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("pointerleave", () => (this.tip.hidden = document.activeElement !== canvas));
    canvas.addEventListener("blur", () => (this.tip.hidden = true));
    canvas.addEventListener("focus", () => this.#point());
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  #key(event) {
    const step = event.shiftKey ? 1 : Math.max(1, this.brush().size / 2);
    const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (move) {
      const bound = (value, most) => Math.min(Math.max(value, 0), most);
      this.at = [bound(this.at[0] + move[0], this.canvas.width), bound(this.at[1] + move[1], this.canvas.height)];
      this.#point();
    } else if (event.key === " ") {
      this.#remember();
      this.#stroke(this.at, this.at);
      this.changed();
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) this.undo();
    else return;
    event.preventDefault();
  }

  /** Where an event is, in the picture's pixels. */
  #place({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((clientX - box.left) * this.canvas.width) / box.width,
      ((clientY - box.top) * this.canvas.height) / box.height,
    ];
  }

  #point() {
    const scale = this.canvas.clientWidth / this.canvas.width,
      { size } = this.brush();
    const { style } = this.tip;
    style.width = style.height = `${size * scale}px`;
    style.left = `${this.canvas.offsetLeft + (this.at[0] - size / 2) * scale}px`;
    style.top = `${this.canvas.offsetTop + (this.at[1] - size / 2) * scale}px`;
    this.tip.hidden = false;
  }

  #stroke([x0, y0], [x1, y1]) {
    const { context } = this,
      { size, erase } = this.brush();
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    context.strokeStyle = COLOUR;
    context.lineCap = "round";
    context.lineWidth = size;
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1 + 1e-3, y1);
    context.stroke();
  }

  #remember() {
    this.past.push(this.#pixels());
    if (this.past.length > UNDOS) this.past.shift();
  }

  #pixels() {
    return this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
  }

  #replace(pixels) {
    this.context.putImageData(pixels, 0, 0);
    this.changed();
  }

  undo() {
    if (this.past.length) this.#replace(this.past.pop());
  }

  clear() {
    if (this.empty()) return;
    this.#remember();
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.changed();
  }

  invert() {
    this.#remember();
    const { context, canvas } = this;
    context.globalCompositeOperation = "source-out"; // the colour where nothing was, nothing where it was
    context.fillStyle = COLOUR;
    context.fillRect(0, 0, canvas.width, canvas.height);
    this.changed();
  }

  empty() {
    return !this.#pixels().data.some((value, i) => i % 4 === 3 && value >= 128);
  }

  /** Paints what is white in a picture, a mask as `address` gives it. */
  async load(address) {
    const image = new Image();
    image.src = address;
    await image.decode();
    const { context, canvas } = this;
    context.globalCompositeOperation = "copy";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    const white = this.#pixels();
    context.fillStyle = COLOUR;
    context.fillRect(0, 0, canvas.width, canvas.height);
    const painted = this.#pixels();
    for (let i = 0; i < painted.data.length; i += 4) painted.data[i + 3] = white.data[i];
    this.#replace(painted);
  }

  /** The mask as a data: address of a PNG: white is drawn anew, black is kept. */
  address() {
    const pixels = this.#pixels();
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data.fill(pixels.data[i + 3] >= 128 ? 255 : 0, i, i + 3);
    for (let i = 3; i < pixels.data.length; i += 4) pixels.data[i] = 255;
    const canvas = Object.assign(document.createElement("canvas"), { width: pixels.width, height: pixels.height });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas.toDataURL("image/png");
  }
}
