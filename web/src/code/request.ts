/** What the code of a request is made of. */

import type { Json, JsonObject } from "../api/types.ts";
import { newId, type Picture } from "../images/pictures.ts";

export interface CodeRequest {
  /** The address below which /chat/completions is, such as http://127.0.0.1:8000/v1. */
  base: string;
  body: JsonObject;
  /** Whether the server asks for a key, which the code takes from a variable. */
  needsKey: boolean;
}

export const KEY_VARIABLE = "TERNVL_API_KEY";

// Nobody can write a text that is taken for a picture's file.
const FILE = `\u0001${newId()}:`;

const EXTENSIONS: Record<string, string> = { "image/jpeg": "jpg", "image/tiff": "tif" };

/**
 * A place holder for a picture whose file the code reads. A name that shells, languages or readers could misunderstand
 * is replaced by a plain one.
 */
export function fileAddress(picture: Picture, number: number): string {
  if (picture.kind === "remote") return picture.url;
  const { name, blob } = picture;
  const isPlain = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/.test(name);
  const extension = EXTENSIONS[blob.type] ?? blob.type.split("/")[1] ?? "png";
  return `${FILE}${blob.type};${isPlain ? name : `image-${number}.${extension}`}`;
}

export interface FileOf {
  type: string;
  name: string;
}

/** The file that a value stands for; null for any other value. */
export function fileOf(value: Json): FileOf | null {
  if (typeof value !== "string" || !value.startsWith(FILE)) return null;
  const [type = "", name = ""] = value.slice(FILE.length).split(";");
  return { type, name };
}

/** Whether a value is or has a picture's file. */
export function readsFiles(value: Json): boolean {
  if (typeof value !== "object" || value === null) return fileOf(value) !== null;
  return Object.values(value).some((each) => readsFiles(each as Json));
}

export interface Literals {
  null: string;
  true: string;
  false: string;
  file: (file: FileOf) => string;
  /** The white space of a level. */
  indent: string;
  /** How the name of a field is written. */
  name: (name: string) => string;
}

const WIDTH = 92;

/** A value as a literal of a language, on several lines if it is long. */
export function literal(value: Json, language: Literals, indent = ""): string {
  const file = fileOf(value);
  if (file) return language.file(file);
  if (value === null) return language.null;
  if (typeof value === "boolean") return value ? language.true : language.false;
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = indent + language.indent;
  const items = Array.isArray(value)
    ? value.map((each) => literal(each, language, inner))
    : Object.entries(value).map(([name, each]) => `${language.name(name)}: ${literal(each, language, inner)}`);
  const [open, close] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  const line = `${open}${items.join(", ")}${close}`;
  if (!items.length || (line.length + indent.length <= WIDTH && !line.includes("\n"))) return line;
  return `${open}\n${items.map((item) => `${inner}${item},`).join("\n")}\n${indent}${close}`;
}
