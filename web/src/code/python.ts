/** A request as a program with the Python package openai. */

import type { JsonObject } from "../api/types.ts";
import { type CodeRequest, KEY_VARIABLE, literal, type Literals, readsFiles } from "./request.ts";

/** Fields that the package has no parameter for. */
const EXTRA = ["mm_processor_kwargs"];

const PYTHON: Literals = {
  null: "None",
  true: "True",
  false: "False",
  indent: "    ",
  file: ({ type, name }) => `data_url(${JSON.stringify(name)}, ${JSON.stringify(type)})`,
  name: (name) => JSON.stringify(name),
};

const DATA_URL = `

def data_url(path, media_type):
    data = base64.b64encode(pathlib.Path(path).read_bytes()).decode()
    return f"data:{media_type};base64,{data}"

`;

export function python({ base, body, needsKey }: CodeRequest): string {
  const files = readsFiles(body);
  const modules = [...(files ? ["base64"] : []), ...(needsKey ? ["os"] : []), ...(files ? ["pathlib"] : [])];
  const key = needsKey ? `os.environ["${KEY_VARIABLE}"]` : '"none"';
  return [
    ...modules.map((name) => `import ${name}`),
    ...(modules.length ? [""] : []),
    "from openai import OpenAI  # pip install openai",
    ...(files ? [DATA_URL] : [""]),
    `client = OpenAI(base_url=${JSON.stringify(base)}, api_key=${key})`,
    "stream = client.chat.completions.create(",
    ...fields(body).map((field) => `    ${field},`),
    ")",
    "for chunk in stream:",
    "    for choice in chunk.choices:",
    ...printed(body),
    "",
  ].join("\n");
}

function fields(body: JsonObject): string[] {
  const own = Object.entries(body).filter(([name]) => !EXTRA.includes(name));
  const extra = Object.entries(body).filter(([name]) => EXTRA.includes(name));
  const all = extra.length ? [...own, ["extra_body", Object.fromEntries(extra)] as const] : own;
  return all.map(([name, value]) => `${name}=${literal(value, PYTHON, "    ")}`);
}

function printed(body: JsonObject): string[] {
  const text = '        print(choice.delta.content or "", end="", flush=True)';
  const calls = [
    "        for call in choice.delta.tool_calls or []:",
    '            print(call.function.name or "", call.function.arguments or "", end="", flush=True)',
  ];
  return body["tools"] ? [text, ...calls] : [text];
}
