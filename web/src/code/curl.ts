/** A request as a command of a POSIX shell. */

import { type CodeRequest, fileOf, KEY_VARIABLE } from "./request.ts";
import type { Json } from "../api/types.ts";

export function curl(request: CodeRequest): string {
  const json = pretty(request.body, "");
  const key = request.needsKey ? ` \\\n  -H "Authorization: Bearer $${KEY_VARIABLE}"` : "";
  const command = `curl -N ${quoted(`${request.base}/chat/completions`)} \\\n  -H 'Content-Type: application/json'${key}`;
  const pieces = json.split(/\u0001([^\u0001]*)\u0001/);
  if (pieces.length === 1) return `${command} \\\n  -d ${quoted(json)}\n`;
  // An argument has a length limit that pictures exceed, and printf, a part of the shell, has none.
  const written = pieces.map((piece, index) => (index % 2 ? `base64 < ${quoted(piece)} | tr -d '\\n'` : `printf '%s' ${quoted(piece)}`));
  return `{\n${written.join("\n")}\n} | ${command} \\\n  --data-binary @-\n`;
}

/** A text as a word of the shell, whatever is in it. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** JSON, with the name of a picture's file between two characters that JSON never has in the place of its content. */
function pretty(value: Json, indent: string): string {
  const file = fileOf(value);
  if (file) return `"data:${file.type};base64,\u0001${file.name}\u0001"`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const inner = indent + "  ";
  const items = Array.isArray(value)
    ? value.map((each) => pretty(each, inner))
    : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${pretty(each, inner)}`);
  const [open, close] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  const line = `${open}${items.join(", ")}${close}`;
  if (!items.length || (line.length + indent.length <= 92 && !line.includes("\n"))) return line;
  return `${open}\n${items.map((item) => inner + item).join(",\n")}\n${indent}${close}`;
}
