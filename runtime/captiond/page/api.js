// The daemon's HTTP interface. Addresses are relative, so that the page works behind a path of a reverse proxy too.

const TIMEOUT_MS = 10000;

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function request(path, options) {
  const settings = { cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(TIMEOUT_MS), ...options };
  const answer = await fetch(path, settings);
  if (answer.ok) return answer;
  let message = `The daemon answered ${answer.status}`;
  try {
    message = (await answer.json()).error.message ?? message;
  } catch {
    // no JSON error: the status says enough
  }
  throw new ApiError(answer.status, message);
}

export async function get(path) {
  return (await request(path)).json();
}

export async function post(path, body = {}) {
  const headers = { "Content-Type": "application/json" };
  await (await request(path, { method: "POST", headers, body: JSON.stringify(body) })).text();
}

// The newest frame as a blob, with what the daemon says of it.
export async function picture(name, side, signal) {
  const stop = AbortSignal.any ? AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]) : signal;
  const answer = await request(`${source(name)}/picture.jpg?side=${side}`, { signal: stop });
  const number = (header) => (answer.headers.has(header) ? Number(answer.headers.get(header)) : NaN);
  return { blob: await answer.blob(), seq: number("X-Frame-Seq"), ageMs: number("X-Frame-Age-Ms") };
}

export function source(name) {
  return `api/sources/${encodeURIComponent(name)}`;
}

// The captioned frame. Captions are numbered anew when the daemon restarts; the time of capture keeps addresses apart.
export function frameAddress(name, caption, frame) {
  return `${source(name)}/history/${encodeURIComponent(caption)}.jpg?t=${encodeURIComponent(frame.t_capture_ns)}`;
}
