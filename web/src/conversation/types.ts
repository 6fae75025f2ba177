/** A conversation: turns that form a tree, because each may be edited or answered again, and the settings of answers. */

import type { Problem } from "../api/problems.ts";
import type { TokenLogprob } from "../api/types.ts";
import type { Picture } from "../images/pictures.ts";

export interface Tool {
  name: string;
  description: string;
  /** The text of a JSON Schema. */
  parameters: string;
}

export type FormMode = "text" | "json_object" | "json_schema";

export interface Settings {
  /** A served model or an adapter; empty for the one that the server takes if none is named. */
  model: string;
  /** Empty for the model's own. */
  system: string;
  /** Null leaves the value to the server, as in the other fields. */
  temperature: number | null;
  topP: number | null;
  maxTokens: number | null;
  seed: number | null;
  maxTiles: number | null;
  logprobs: boolean;
  topLogprobs: number;
  tools: Tool[];
  /** auto, required, none, or the name of a tool after "function:". */
  toolChoice: string;
  form: FormMode;
  /** The text of the JSON Schema that answers must match. */
  schema: string;
}

interface Turn {
  id: string;
  /** The turn before it; null for the first. */
  parent: string | null;
}

export interface UserTurn extends Turn {
  role: "user";
  text: string;
  pictures: Picture[];
}

export interface ToolTurn extends Turn {
  role: "tool";
  results: { id: string; name: string; content: string }[];
}

export interface Call {
  id: string;
  name: string;
  /** JSON, incomplete while it is written or if the answer was cut. */
  arguments: string;
}

/** Numbers of tokens, as the server counts them. */
export interface Counts {
  answer: number;
  prompt: number;
  /** Of the prompt, those of images, and those that the server had computed before. */
  images: number;
  cached: number;
}

export interface AnswerTurn extends Turn {
  role: "assistant";
  model: string;
  text: string;
  reasoning: string;
  calls: Call[];
  tokens: TokenLogprob[];
  state: "running" | "done" | "stopped" | "failed";
  /** Whether the answer was asked for as JSON. */
  isJson: boolean;
  finish: string | null;
  counts: Counts | null;
  problem: Problem | null;
  /** Milliseconds from the request to the first and the last piece of the answer. */
  first: number | null;
  last: number | null;
}

export type AnyTurn = UserTurn | ToolTurn | AnswerTurn;

export interface Conversation {
  id: string;
  title: string;
  /** Milliseconds since 1970. */
  updated: number;
  settings: Settings;
  turns: Record<string, AnyTurn>;
  /** The turn that is shown after each turn that has several, by the id of that turn; "" is the beginning. */
  chosen: Record<string, string>;
}
