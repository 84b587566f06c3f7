// What happened on a cluster, from events alone: the JSON lines that `--events` writes and that the
// live server streams (docs/simulator.md has the schema); and, live, what runs now. Knows no page and
// no network.

export const STAGES = ["encode", "diffuse", "decode"];
const KEPT_REQUESTS = 5000;

export class Recording {
  // `keepS`: what ended longer ago is forgotten (live); Infinity keeps all (files).
  constructor(keepS = Infinity) {
    this.keepS = keepS;
    this.devices = []; // by node and number: {id, node, memoryBytes, runs: [], now: run or null, weights: [], lost: []}
    this.byId = new Map();
    this.requests = new Map(); // id -> {id, model, shape, arrive, deadline, steps, runs, decisions, end, onTime, reason}
    this.switches = []; // {t, version, why}
    this.placements = []; // of switches and the first: {t, version, stages: {device: ["model/stage"]}, why}
    this.beginsAt = null;
    this.endsAt = 0;
    this.malformed = 0;
  }

  // Takes one line of a file; returns whether it was an event.
  takeLine(line) {
    if (!line.trim()) return false;
    try {
      return this.take(JSON.parse(line));
    } catch {
      this.malformed += 1;
      return false;
    }
  }

  take(event) {
    const accept = TAKERS[event.kind];
    if (!accept) return false;
    accept(this, event);
    return true;
  }

  noteTime(t) {
    if (this.beginsAt === null || t < this.beginsAt) this.beginsAt = t;
    if (t > this.endsAt) this.endsAt = t;
  }

  device(id, node = "") {
    let device = this.byId.get(id);
    if (!device) {
      device = { id, node, memoryBytes: 0, runs: [], now: null, weights: [], lost: [] };
      this.byId.set(id, device);
      this.devices.push(device);
      this.devices.sort((a, b) => naturally(a.node, b.node) || naturally(a.id, b.id));
    }
    return device;
  }

  request(id) {
    let request = this.requests.get(id);
    if (!request) {
      request = { id, model: "", shape: "", arrive: null, deadline: null, runs: [], decisions: [], end: null, onTime: null };
      this.requests.set(id, request);
    }
    return request;
  }

  // Takes what runs at `t`: launches are events only when they end.
  noteRunning(devices, t) {
    for (const device of this.devices) device.now = null;
    for (const { id, busy } of devices) {
      if (busy === null || id !== busy.devices[0]) continue;
      const run = {
        start: busy.since,
        end: Math.max(busy.since, t),
        due: busy.ends,
        stage: busy.stage,
        devices: busy.devices,
        degree: busy.devices.length,
        requests: busy.requests,
        stepFrom: 0,
        stepTo: busy.step,
        steps: busy.steps,
        outcome: "running",
        purpose: busy.purpose,
      };
      for (const member of run.devices) this.device(member).now = run;
    }
  }

  // Runs on a device, the one of now last.
  runsOf(device) {
    return device.now ? [...device.runs, device.now] : device.runs;
  }

  // Runs of a request, oldest first.
  runsFor(request) {
    const now = new Set(this.devices.map((device) => device.now).filter((run) => run?.requests.includes(request.id)));
    return [...request.runs, ...now].sort((a, b) => a.start - b.start);
  }

  // All outputs of the request that an output belongs to: `r`, `r/1`, ...
  outputsOf({ id }) {
    const base = id.split("/")[0];
    const found = [this.requests.get(base)];
    while (this.requests.has(`${base}/${found.length}`)) found.push(this.requests.get(`${base}/${found.length}`));
    return found.filter((output) => output !== undefined);
  }

  // Forgets what is older than `keepS`, so that a page can stay open for days.
  forget() {
    if (this.keepS === Infinity) return;
    const before = this.endsAt - this.keepS;
    for (const device of this.devices) {
      device.runs = device.runs.filter((run) => run.end >= before);
      device.weights = device.weights.filter((w) => w.until === null || w.until >= before);
    }
    this.switches = this.switches.filter((s) => s.t >= before);
    this.placements = this.placements.filter((p, i, all) => p.t >= before || i === all.length - 1);
    for (const [id, request] of this.requests) {
      const crowded = this.requests.size > KEPT_REQUESTS;
      if (request.end !== null && (crowded || request.end < before)) this.requests.delete(id);
    }
    this.beginsAt = Math.max(this.beginsAt ?? before, before);
  }

  // Stages that lie on a device at a time, with how much memory they take.
  residentAt(device, t) {
    return device.weights.filter((w) => w.from <= t && (w.until === null || w.until > t));
  }

  // The placement that is wanted at a time; null if nobody told.
  placementAt(t) {
    return this.placements.findLast((p) => p.t <= t) ?? null;
  }

  runningAt(device, t) {
    return device.runs.find((run) => run.start <= t && run.end > t) ?? null;
  }

  isLostAt(device, t) {
    return device.lost.some((gap) => gap.from <= t && (gap.until === null || gap.until > t));
  }

  // Requests that are neither finished nor running at a time, by class.
  waitingAt(t) {
    const classes = new Map();
    for (const request of this.requests.values()) {
      if (request.arrive === null || request.arrive > t || (request.end !== null && request.end <= t)) continue;
      if (request.runs.some((run) => run.start <= t && run.end > t)) continue;
      const key = classOf(request);
      const row = classes.get(key) ?? { name: key, waiting: 0, oldest: t, nextDeadline: Infinity, lastEnd: 0 };
      row.waiting += 1;
      row.oldest = Math.min(row.oldest, request.arrive);
      row.nextDeadline = Math.min(row.nextDeadline, request.deadline ?? Infinity);
      row.lastEnd = Math.max(row.lastEnd, request.end ?? Infinity);
      classes.set(key, row);
    }
    return [...classes.values()].sort((a, b) => a.name.localeCompare(b.name));
  }

  // Attainment and latency of the requests that ended in (from, to], by class; the first row is all.
  outcomes(from, to) {
    const classes = new Map();
    const all = { name: "all", latencies: [], met: 0, ended: 0, rejected: 0 };
    for (const request of this.requests.values()) {
      if (request.end === null || request.end <= from || request.end > to) continue;
      const key = classOf(request);
      if (!classes.has(key)) classes.set(key, { name: key, latencies: [], met: 0, ended: 0, rejected: 0 });
      for (const row of [all, classes.get(key)]) {
        row.ended += 1;
        if (request.onTime) row.met += 1;
        if (request.reason) row.rejected += 1;
        else if (request.arrive !== null) row.latencies.push(request.end - request.arrive);
      }
    }
    const rows = [all, ...[...classes.values()].sort((a, b) => a.name.localeCompare(b.name))];
    for (const row of rows) row.latencies.sort((a, b) => a - b);
    return rows;
  }

  // Share of device time in (from, to] that ran something.
  utilisation(from, to) {
    if (to <= from || this.devices.length === 0) return 0;
    let busy = 0;
    for (const device of this.devices) {
      for (const run of this.runsOf(device)) {
        busy += Math.max(0, Math.min(run.end, to) - Math.max(run.start, from));
      }
    }
    return busy / ((to - from) * this.devices.length);
  }
}

export function classOf(request) {
  return `${request.model || "?"} ${request.shape}`.trim();
}

// `g2` before `g10`.
const naturally = new Intl.Collator("en", { numeric: true }).compare;

// What tells ids apart is at their end: the beginning of ours is when they were made.
export function shortId(id) {
  return id.length <= 12 ? id : id.slice(-8);
}

// Devices as people write them: `g0 to g7` if they are neighbours.
export function rangeOf(ids) {
  const [, name, first] = /^(.*?)(\d*)$/.exec(ids[0]);
  const isRange = ids.length > 2 && ids.every((id, i) => id === `${name}${Number(first) + i}`);
  return isRange ? `${ids[0]} to ${ids.at(-1)}` : ids.join(" ");
}

export function quantile(sorted, q) {
  if (sorted.length === 0) return null;
  const at = (sorted.length - 1) * q;
  const low = Math.floor(at);
  const high = Math.min(sorted.length - 1, low + 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - low);
}

function shapeOf(event) {
  const size = `${event.width}x${event.height}`;
  return event.frames > 1 ? `${size}x${event.frames}` : size;
}

const TAKERS = {
  cluster(recording, event) {
    const t = event.t ?? 0;
    for (const found of event.devices) {
      const device = recording.device(found.id, found.node);
      device.node = found.node;
      device.memoryBytes = found.memory_bytes;
      if (recording.residentAt(device, Infinity).length > 0) continue;
      for (const w of found.stages ?? []) {
        device.weights.push({ model: w.model, stage: w.stage, bytes: w.bytes, loadFrom: t, from: t, until: null });
      }
    }
    recording.noteTime(t);
  },
  arrive(recording, event) {
    const request = recording.request(event.request);
    Object.assign(request, {
      model: event.model,
      shape: shapeOf(event),
      arrive: event.t,
      deadline: event.deadline,
      steps: event.steps,
      tenant: event.tenant,
      priority: event.priority ?? 0,
    });
    recording.noteTime(event.t);
  },
  run(recording, event) {
    const run = {
      start: event.start,
      end: event.end,
      stage: event.stage,
      devices: event.devices,
      degree: event.degree,
      requests: event.requests,
      stepFrom: event.step_from,
      stepTo: event.step_to,
      outcome: event.outcome ?? "done",
      purpose: event.purpose ?? "main",
    };
    for (const device of event.devices.map((id) => recording.device(id))) {
      device.runs.push(run);
      if (device.now && device.now.start <= run.end) device.now = null;
    }
    for (const id of event.requests) recording.request(id).runs.push(run);
    recording.noteTime(event.start);
    recording.noteTime(event.end);
  },
  load(recording, event) {
    recording.device(event.device).weights.push({
      model: event.model,
      stage: event.stage,
      bytes: event.bytes,
      loadFrom: event.start,
      from: event.end,
      until: null,
    });
    recording.noteTime(event.end);
  },
  evict(recording, event) {
    const device = recording.device(event.device);
    const gone = device.weights.find((w) => w.until === null && w.model === event.model && w.stage === event.stage);
    if (gone) gone.until = event.start;
    recording.noteTime(event.end);
  },
  place(recording, event) {
    recording.placements.push({ t: event.t, version: event.version, stages: event.stages ?? {}, why: event.why ?? "" });
    recording.noteTime(event.t);
  },
  switch(recording, event) {
    recording.switches.push({ t: event.t, version: event.version });
    if (Object.keys(event.stages ?? {}).length > 0) TAKERS.place(recording, event);
    recording.noteTime(event.t);
  },
  decide(recording, event) {
    const decisions = recording.request(event.request).decisions;
    decisions.push({ t: event.t, stage: event.stage, devices: event.devices ?? [], why: event.why });
    recording.noteTime(event.t);
  },
  reject(recording, event) {
    Object.assign(recording.request(event.request), { end: event.t, onTime: false, reason: event.reason });
    recording.noteTime(event.t);
  },
  finish(recording, event) {
    Object.assign(recording.request(event.request), { end: event.t, onTime: event.on_time });
    recording.noteTime(event.t);
  },
  device_lost(recording, event) {
    const device = recording.device(event.device);
    for (const w of device.weights) w.until ??= event.t;
    device.lost.push({ from: event.t, until: null });
    recording.noteTime(event.t);
  },
  device_ready(recording, event) {
    const device = recording.device(event.device, event.node);
    if (event.memory_bytes) Object.assign(device, { node: event.node, memoryBytes: event.memory_bytes });
    const gap = device.lost.at(-1);
    if (gap) gap.until ??= event.t;
    recording.noteTime(event.t);
  },
};
