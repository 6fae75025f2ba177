/** The settings of answers: their defaults, and what is wrong with them. */

import type { JsonObject } from "../api/types.ts";
import type { Settings, Tool } from "./types.ts";

export const DEFAULTS: Settings = {
  model: "",
  system: "",
  temperature: null,
  topP: null,
  maxTokens: null,
  seed: null,
  maxTiles: null,
  logprobs: false,
  topLogprobs: 5,
  tools: [],
  toolChoice: "auto",
  form: "text",
  schema: "",
};

/** The ranges of the numbers, as the server has them (docs/server.md). */
export const RANGES = {
  temperature: { low: 0, high: 2, step: 0.1, isWhole: false },
  topP: { low: 0, high: 1, step: 0.05, isWhole: false },
  maxTokens: { low: 1, high: 1_000_000, step: 1, isWhole: true },
  seed: { low: -Number.MAX_SAFE_INTEGER, high: Number.MAX_SAFE_INTEGER, step: 1, isWhole: true },
  maxTiles: { low: 1, high: 40, step: 1, isWhole: true },
} as const;

export type NumberName = keyof typeof RANGES;

/** What is wrong with a number as it was typed; empty if nothing is. */
export function wrongNumber(name: NumberName, text: string): string {
  if (!text.trim()) return "";
  const { low, high, isWhole } = RANGES[name];
  const value = Number(text);
  if (!Number.isFinite(value)) return "This is not a number.";
  if (isWhole && !Number.isInteger(value)) return "This is not a whole number.";
  if (value < low) return `The least is ${low}.`;
  return value > high ? `The most is ${high}.` : "";
}

/** What is wrong with the text of a JSON Schema; empty if nothing is. */
export function wrongSchema(text: string): string {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return `This is not JSON: ${(error as Error).message}`;
  }
  const isObject = typeof value === "object" && value !== null && !Array.isArray(value);
  return isObject ? "" : "A JSON Schema is an object: {...}";
}

/** What is wrong with a tool, by field; empty if nothing is. `others` are the other tools. */
export function wrongTool(tool: Tool, others: Tool[]): Partial<Record<keyof Tool, string>> {
  const wrong: Partial<Record<keyof Tool, string>> = {};
  if (!/^[A-Za-z0-9_-]{1,64}$/.test(tool.name)) wrong.name = "A name has 1 to 64 letters, digits, _ or -.";
  else if (others.some((other) => other.name === tool.name)) wrong.name = "Another tool has this name.";
  const schema = tool.parameters.trim() ? wrongSchema(tool.parameters) || wrongArguments(tool.parameters) : "";
  if (schema) wrong.parameters = schema;
  return wrong;
}

function wrongArguments(text: string): string {
  const type = (JSON.parse(text) as JsonObject)["type"];
  return type === "object" ? "" : 'The arguments of a tool are an object: "type": "object".';
}

/** What keeps a request with these settings from being sent; empty if nothing does. */
export function wrongSettings(settings: Settings): string {
  if (settings.form === "json_schema") {
    const wrong = settings.schema.trim() ? wrongSchema(settings.schema) : "There is none yet.";
    if (wrong) return `The JSON Schema of answers: ${wrong}`;
  }
  const names = settings.tools.map((tool) => `function:${tool.name}`);
  if (settings.toolChoice.startsWith("function:") && settings.tools.length && !names.includes(settings.toolChoice)) {
    return "The tool that the model must call is no longer there. Choose another one.";
  }
  for (const tool of settings.tools) {
    const [wrong] = Object.values(wrongTool(tool, settings.tools.filter((each) => each !== tool)));
    if (wrong) return `The tool ${tool.name || "without a name"}: ${wrong}`;
  }
  return "";
}
