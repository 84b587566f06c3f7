// Server-sent events over fetch: unlike EventSource it can send a key and reports what the server said.

export class StreamError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function bearer(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

// Yields {event, data} until the stream ends; throws StreamError with the server's own message.
// `onHeaders` is told the headers of the answer before its first event.
export async function* events(url, { onHeaders, ...options } = {}) {
  const response = await fetch(url, options);
  if (!response.ok) throw await errorOf(response);
  onHeaders?.(response.headers);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value.replaceAll("\r\n", "\n");
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = parse(block);
      if (event) yield event;
    }
  }
}

export async function errorOf(response) {
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not ours: the status line says enough
  }
  return new StreamError(message, response.status);
}

function parse(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return data.length ? { event, data: data.join("\n") } : null;
}
