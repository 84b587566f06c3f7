// Devices by time, on a canvas: one bar per run over the rows of its team, coloured by stage.
// Draws a Recording; says what is chosen through `onChoose(run, device)`. Knows no other part.

import { rangeOf, shortId } from "/static/recording.js";

const AXIS_PX = 22;
const GUTTER_PX = 84;
const LEAST_ROW_PX = 7;
const MOST_ROW_PX = 26;

export class Timeline {
  constructor(canvas, { onChoose, onMove, tooltip }) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.onChoose = onChoose;
    this.onMove = onMove;
    this.tooltip = tooltip;
    this.recording = null;
    this.now = null; // a cursor; null: none
    this.from = 0;
    this.span = 60;
    this.row = 0;
    this.chosen = null; // request id
    this.listen();
  }

  show(recording) {
    this.recording = recording;
    this.row = 0;
    this.fit();
  }

  fit() {
    const { beginsAt, endsAt } = this.recording;
    this.from = beginsAt ?? 0;
    this.span = Math.max(1, endsAt - this.from) * 1.02;
    this.draw();
  }

  // Keeps `t` at nine tenths of the width; a history that is younger begins at the left.
  follow(t) {
    const begin = Math.min(t, this.recording.beginsAt ?? t);
    this.from = Math.max(begin, t - 0.9 * this.span);
    this.now = t;
    this.draw();
  }

  zoom(factor, around = this.from + this.span / 2) {
    const span = Math.min(Math.max(0.05, this.span * factor), 1e7);
    this.from = around - ((around - this.from) * span) / this.span;
    this.span = span;
    this.moved();
  }

  pan(share) {
    this.from += share * this.span;
    this.moved();
  }

  moved() {
    this.onMove?.();
    this.draw();
  }

  get rowPx() {
    const rows = Math.max(1, this.recording?.devices.length ?? 1);
    return Math.min(MOST_ROW_PX, Math.max(LEAST_ROW_PX, Math.floor(640 / rows)));
  }

  x(t) {
    return GUTTER_PX + ((t - this.from) / this.span) * (this.width - GUTTER_PX);
  }

  timeAt(x) {
    return this.from + ((x - GUTTER_PX) / (this.width - GUTTER_PX)) * this.span;
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    this.width = this.canvas.parentElement.clientWidth;
    this.height = AXIS_PX + this.rowPx * Math.max(1, this.recording?.devices.length ?? 1);
    const [w, h] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== h) {
      this.canvas.width = w;
      this.canvas.height = h;
      this.canvas.style.height = `${this.height}px`;
      this.canvas.style.width = `${this.width}px`;
    }
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  draw() {
    if (!this.recording || this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = null;
      this.paint();
    });
  }

  paint() {
    this.resize();
    this.colours = readColours();
    const c = this.context;
    c.clearRect(0, 0, this.width, this.height);
    c.font = "11px system-ui, sans-serif";
    this.paintRows();
    c.save();
    c.beginPath();
    c.rect(GUTTER_PX, 0, this.width - GUTTER_PX, this.height);
    c.clip();
    this.paintWeights();
    this.paintRuns();
    this.paintSwitches();
    this.paintNow();
    c.restore();
    this.paintAxis();
    if (!this.recording.devices.length) this.label("No device is known yet.", 4, AXIS_PX + this.rowPx / 2, this.colours.muted, this.width);
  }

  paintRows() {
    const { context: c, rowPx, colours } = this;
    let node = null;
    c.textBaseline = "middle";
    this.recording.devices.forEach((device, i) => {
      const y = AXIS_PX + i * rowPx;
      if (device.node !== node) {
        node = device.node;
        c.fillStyle = colours.line;
        c.fillRect(0, y, this.width, 1);
        if (rowPx < 12) this.label(node, 4, y + Math.max(rowPx, 12) / 2 + 1, colours.muted);
      }
      if (rowPx >= 12) this.label(device.id, 4, y + rowPx / 2, i === this.row ? colours.accent : colours.muted);
      if (i === this.row && document.activeElement === this.canvas) {
        c.strokeStyle = colours.accent;
        c.strokeRect(GUTTER_PX + 0.5, y + 0.5, this.width - GUTTER_PX - 1, rowPx - 1);
      }
    });
  }

  label(text, x, y, colour, most = GUTTER_PX - 8) {
    this.context.fillStyle = colour;
    this.context.fillText(text, x, y, most);
  }

  paintWeights() {
    const { context: c, rowPx, colours } = this;
    const until = this.from + this.span;
    this.recording.devices.forEach((device, i) => {
      const y = AXIS_PX + i * rowPx;
      for (const w of device.weights) {
        if (w.from > w.loadFrom && w.from >= this.from && w.loadFrom <= until) {
          this.hatch(this.x(w.loadFrom), y + 1, this.x(w.from), y + rowPx - 1);
        }
        if (w.until !== null && w.until >= this.from && w.until <= until) {
          c.fillStyle = colours.bad;
          c.fillRect(this.x(w.until) - 1, y + rowPx / 2, 2, rowPx / 2 - 1);
        }
      }
      for (const gap of device.lost) {
        c.globalAlpha = 0.3;
        c.fillStyle = colours.bad;
        const x = this.x(gap.from);
        c.fillRect(x, y, this.x(gap.until ?? this.recording.endsAt) - x, rowPx);
        c.globalAlpha = 1;
      }
    });
  }

  hatch(x0, y0, x1, y1) {
    const c = this.context;
    c.save();
    c.beginPath();
    c.rect(x0, y0, Math.max(2, x1 - x0), y1 - y0);
    c.clip();
    c.strokeStyle = this.colours.load;
    for (let x = x0 - (y1 - y0); x < Math.max(x1, x0 + 2); x += 4) {
      c.beginPath();
      c.moveTo(x, y1);
      c.lineTo(x + (y1 - y0), y0);
      c.stroke();
    }
    c.restore();
  }

  paintRuns() {
    const until = this.from + this.span;
    this.recording.devices.forEach((device, i) => {
      for (const run of this.recording.runsOf(device)) {
        if ((run.due ?? run.end) < this.from || run.start > until || this.isContinued(run, i)) continue;
        this.paintRun(run, i, this.rowsFrom(run, i));
      }
    });
  }

  // A team on neighbouring rows is one bar, drawn at its first row.
  isContinued(run, i) {
    return i > 0 && run.devices.includes(this.recording.devices[i - 1].id);
  }

  rowsFrom(run, i) {
    let rows = 1;
    const { devices } = this.recording;
    while (i + rows < devices.length && run.devices.includes(devices[i + rows].id)) rows += 1;
    return rows;
  }

  paintRun(run, i, rows) {
    const { context: c, rowPx, colours } = this;
    const [x0, x1] = [this.x(run.start), this.x(run.end)];
    const [y, width, height] = [AXIS_PX + i * rowPx + 1, Math.max(1, x1 - x0 - 0.5), rows * rowPx - 2];
    const isChosen = run.requests.includes(this.chosen);
    const isDimmed = this.chosen !== null && !isChosen;
    c.globalAlpha = isDimmed ? 0.4 : 1;
    c.fillStyle = colours[run.stage];
    c.fillRect(x0, y, width, height);
    if (run.due > run.end) this.paintRest(run, y, height);
    if (isChosen) {
      c.strokeStyle = colours.text;
      c.lineWidth = 2;
      c.strokeRect(x0, y, width, height);
      c.lineWidth = 1;
    }
    if (run.outcome === "failed") {
      c.strokeStyle = colours.bad;
      c.lineWidth = 2;
      c.strokeRect(x0 + 1, y + 1, Math.max(1, width - 2), height - 2);
      c.lineWidth = 1;
    }
    if (run.outcome === "paused" || run.outcome === "resized") this.paintBoundary(run, x1, y, height);
    if (!isDimmed && height >= 12) this.paintName(run, Math.max(x0, GUTTER_PX) + 4, x1 - 4, y + height / 2);
    c.globalAlpha = 1;
  }

  // A launch that has not ended: from now to when it should.
  paintRest(run, y, height) {
    const c = this.context;
    const x = this.x(run.end);
    c.strokeStyle = this.colours[run.stage];
    c.setLineDash([3, 3]);
    c.strokeRect(x, y + 0.5, this.x(run.due) - x, height - 1);
    c.setLineDash([]);
  }

  // As much of whose run it is and on how many devices as there is room for.
  paintName(run, x0, x1, y) {
    const more = run.requests.length > 1 ? `+${run.requests.length - 1}` : "";
    const degree = `x${run.degree}`;
    const text = [`${shortId(run.requests[0])}${more} ${degree}`, degree].find((known) => this.context.measureText(known).width <= x1 - x0);
    if (text === undefined) return;
    this.context.fillStyle = this.colours["on-stage"];
    this.context.fillText(text, x0, y);
  }

  paintBoundary(run, x, y, height) {
    const c = this.context;
    c.fillStyle = run.outcome === "paused" ? this.colours.preempt : this.colours.switch;
    c.beginPath();
    c.moveTo(x, y);
    c.lineTo(x - 5, y + height / 2);
    c.lineTo(x, y + height);
    c.fill();
  }

  paintSwitches() {
    const c = this.context;
    c.strokeStyle = this.colours.switch;
    c.setLineDash([5, 3]);
    for (const s of this.recording.switches) {
      const x = Math.round(this.x(s.t)) + 0.5;
      c.beginPath();
      c.moveTo(x, 0);
      c.lineTo(x, this.height);
      c.stroke();
    }
    c.setLineDash([]);
  }

  paintNow() {
    if (this.now === null) return;
    this.context.fillStyle = this.colours.text;
    this.context.fillRect(this.x(this.now), 0, 1, this.height);
  }

  paintAxis() {
    const { context: c, colours } = this;
    const step = tickStep(this.span / Math.max(2, (this.width - GUTTER_PX) / 90));
    const zero = this.recording.beginsAt ?? 0;
    c.fillStyle = colours.muted;
    const first = Math.ceil((this.from - zero) / step) * step;
    for (let t = first; t <= this.from - zero + this.span; t += step) {
      const x = this.x(t + zero);
      if (x < GUTTER_PX) continue;
      c.fillRect(x, AXIS_PX - 5, 1, 5);
      c.fillText(clock(t, step), x + 3, AXIS_PX - 12);
    }
  }

  deviceAt(y) {
    return Math.floor((y - AXIS_PX) / this.rowPx);
  }

  runAt(row, t) {
    const device = this.recording?.devices[row];
    return device && this.recording.runsOf(device).find((run) => run.start <= t && (run.due ?? run.end) >= t);
  }

  choose(row, t) {
    const run = this.runAt(row, t);
    if (run) this.onChoose(run, this.recording.devices[row]);
  }

  listen() {
    const { canvas } = this;
    let dragFrom = null;
    canvas.addEventListener("pointerdown", (event) => {
      dragFrom = { x: event.offsetX, from: this.from, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!dragFrom) return this.hover(event);
      const dx = event.offsetX - dragFrom.x;
      if (Math.abs(dx) > 3) dragFrom.moved = true;
      if (dragFrom.moved) {
        this.from = dragFrom.from - (dx / (this.width - GUTTER_PX)) * this.span;
        this.moved();
      }
    });
    canvas.addEventListener("pointerup", (event) => {
      if (dragFrom && !dragFrom.moved) {
        this.row = this.deviceAt(event.offsetY);
        this.choose(this.row, this.timeAt(event.offsetX));
      }
      dragFrom = null;
    });
    canvas.addEventListener("pointerleave", () => (this.tooltip.hidden = true));
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.shiftKey) return;
        event.preventDefault();
        if (event.ctrlKey) this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.timeAt(event.offsetX));
        else this.pan(event.deltaY > 0 ? 0.1 : -0.1);
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.draw());
    canvas.addEventListener("blur", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
  }

  key(event) {
    const actions = {
      ArrowLeft: () => this.pan(-0.1),
      ArrowRight: () => this.pan(0.1),
      ArrowUp: () => this.moveRow(-1),
      ArrowDown: () => this.moveRow(1),
      "+": () => this.zoom(0.8),
      "=": () => this.zoom(0.8),
      "-": () => this.zoom(1.25),
      Home: () => this.fit(),
      Enter: () => this.chooseNext(),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  moveRow(by) {
    const rows = this.recording?.devices.length ?? 1;
    this.row = Math.min(Math.max(0, this.row + by), rows - 1);
    this.draw();
  }

  // The next run in the chosen row after the one that is chosen, within what is visible.
  chooseNext() {
    const device = this.recording?.devices[this.row];
    if (!device) return;
    const visible = this.recording
      .runsOf(device)
      .filter((run) => run.end >= this.from && run.start <= this.from + this.span)
      .sort((a, b) => a.start - b.start);
    const at = visible.findIndex((run) => run.requests.includes(this.chosen));
    const next = visible[at + 1] ?? visible[0];
    if (next) this.onChoose(next, device);
  }

  hover(event) {
    const row = this.deviceAt(event.offsetY);
    const run = this.runAt(row, this.timeAt(event.offsetX));
    this.tooltip.hidden = !run;
    if (!run) return;
    const steps = run.stage === "diffuse" ? `, steps ${run.stepFrom} to ${run.stepTo}` : "";
    const tail = run.outcome === "done" ? "" : `, ${run.outcome}`;
    this.tooltip.textContent =
      `${run.stage} of ${run.requests.map(shortId).join(", ")} on ${rangeOf(run.devices)} ` +
      `(degree ${run.degree}): ${(run.end - run.start).toFixed(2)} s${steps}${tail}`;
    const x = Math.min(event.offsetX + 12, this.width - 320);
    this.tooltip.style.transform = `translate(${Math.max(0, x)}px, ${event.offsetY + 14}px)`;
  }
}

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["encode", "diffuse", "decode", "load", "switch", "preempt", "bad", "line", "muted", "text", "accent", "on-stage"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function tickStep(least) {
  const steps = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400];
  return steps.find((step) => step >= least) ?? 86400 * Math.ceil(least / 86400);
}

export function clock(t, step = 1) {
  const sign = t < 0 ? "-" : "";
  const s = Math.abs(t);
  if (step < 1) return `${sign}${s.toFixed(step < 0.1 ? 2 : 1)} s`;
  const [h, m, r] = [Math.floor(s / 3600), Math.floor((s % 3600) / 60), Math.round(s % 60)];
  const two = (n) => String(n).padStart(2, "0");
  return h > 0 ? `${sign}${h}:${two(m)}:${two(r)}` : `${sign}${m}:${two(r)}`;
}
