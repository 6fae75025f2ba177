/** What can go wrong with a request, and how it is said. */

export type ProblemKind = "key" | "full" | "stopping" | "gone" | "refused" | "failed" | "cut";

export interface Problem {
  kind: ProblemKind;
  /** What the server said, or a sentence of the page's own. */
  message: string;
  /** Seconds after which the server asks to try again. */
  retryAfter: number | null;
}

const TITLES: Record<ProblemKind, string> = {
  key: "The server asks for a key",
  full: "The server is full",
  stopping: "The server is stopping",
  gone: "The server cannot be reached",
  refused: "The server refused the request",
  failed: "The server failed",
  cut: "The answer broke off",
};

export function title(problem: Problem): string {
  return TITLES[problem.kind];
}

/** Thrown where a request does not lead to an answer. */
export class RequestFailed extends Error {
  constructor(readonly problem: Problem) {
    super(problem.message);
  }
}

/** The server could not be reached at all. */
export function gone(): Problem {
  const message = "Nothing answers at this address. The server may have ended, or the network may be down.";
  return { kind: "gone", message, retryAfter: null };
}

/** The stream ended before its answer had. */
export function cut(): Problem {
  const message = "The connection ended before the answer did. What had arrived is kept.";
  return { kind: "cut", message, retryAfter: null };
}

/** An error that the server sent within a stream. */
export function brokenOff(message: string): Problem {
  return { kind: "cut", message, retryAfter: null };
}

/** The problem of an answer with an error status. */
export async function problemOf(response: Response): Promise<Problem> {
  const message = messageOf(await response.text().catch(() => ""), response);
  return { kind: kindOf(response.status), message, retryAfter: seconds(response.headers.get("retry-after")) };
}

function kindOf(status: number): ProblemKind {
  if (status === 401) return "key";
  if (status === 429) return "full";
  if (status === 503) return "stopping";
  // A proxy in front of a server that has ended answers with these.
  if (status === 502) return "gone";
  return status >= 500 ? "failed" : "refused";
}

function messageOf(text: string, response: Response): string {
  try {
    const body = JSON.parse(text) as { error?: { message?: unknown } };
    if (typeof body.error?.message === "string") return body.error.message;
  } catch {
    // Not the server's own answer, but perhaps that of a proxy.
  }
  return `The answer has the status ${response.status} ${response.statusText}`.trim() + ".";
}

function seconds(value: string | null): number | null {
  const number = value === null ? NaN : Number(value);
  return Number.isFinite(number) && number >= 0 ? Math.ceil(number) : null;
}
