// The stages of one job by time: finished ones in order of their start and, while steps are denoised,
// how far they are. Draws `/v1/jobs/{id}` as often as it is given one.

import { element, fill } from "/static/dom.js";

export class StageRows {
  constructor(parent) {
    this.parent = parent;
    this.clear();
  }

  clear() {
    this.anchor = null; // what the server said last, and when by our clock: theirs need not be ours
    this.parent.hidden = true;
    fill(this.parent, []);
  }

  draw(job, isWatched) {
    const runs = [...(job.stages ?? [])].sort((a, b) => a.started_at - b.started_at);
    const isDenoising = isWatched && job.status === "in_progress" && job.progress < 100;
    const begin = runs[0]?.started_at ?? job.started_at;
    const told = Math.max(begin, ...runs.map(endOf));
    const end = isDenoising ? this.now(told) : told;
    const share = (seconds) => `${(100 * seconds) / Math.max(end - begin, 1e-3)}%`;
    const rows = runs.map((run) => {
      const load = bar("hatch", share(run.started_at - begin), share(run.load_s));
      const ran = bar(run.stage, share(run.started_at + run.load_s - begin), share(run.run_s));
      return row(nameOf(run, job.n), run.load_s > 0 ? [load, ran] : [ran], `${duration(run.run_s)} on ${run.device}`);
    });
    if (isDenoising) {
      const from = Math.max(begin, ...runs.filter((run) => run.stage === "encode").map(endOf));
      rows.push(row("diffuse", [bar("diffuse running", share(from - begin), share(end - from))], `${job.progress} % of the steps`));
    }
    this.parent.hidden = rows.length === 0;
    fill(this.parent, [element("h3", {}, "Stages"), element("div", { className: "rows" }, ...rows)]);
  }

  now(told) {
    this.anchor ??= { at: performance.now(), t: told };
    return Math.max(told, this.anchor.t + (performance.now() - this.anchor.at) / 1000);
  }
}

export function duration(seconds) {
  return seconds < 0.9995 ? `${(1000 * seconds).toFixed(0)} ms` : `${seconds.toFixed(seconds < 99.95 ? 1 : 0)} s`;
}

function endOf(run) {
  return run.started_at + run.load_s + run.run_s;
}

function row(name, bars, text) {
  return element("div", { className: "row" }, element("span", {}, name), element("div", { className: "track" }, ...bars), element("span", {}, text));
}

function bar(kind, left, width) {
  const made = element("i", { className: `swatch ${kind}` });
  Object.assign(made.style, { left, width });
  return made;
}

function nameOf(run, n) {
  if (run.node.startsWith("preview")) return "partial image";
  if (run.node === "encode-image") return "encode source";
  const number = run.node.split("-")[1];
  const which = n > 1 && number !== undefined ? ` ${Number(number) + 1}` : "";
  return `${run.stage}${which}${run.attempt > 1 ? `, try ${run.attempt}` : ""}`;
}
