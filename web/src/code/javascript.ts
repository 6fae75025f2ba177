/** A request as a program with the npm package openai. */

import { type CodeRequest, KEY_VARIABLE, literal, type Literals, readsFiles } from "./request.ts";

const JAVASCRIPT: Literals = {
  null: "null",
  true: "true",
  false: "false",
  indent: "  ",
  file: ({ type, name }) => `await dataUrl(${JSON.stringify(name)}, ${JSON.stringify(type)})`,
  name: (name) => (/^[A-Za-z_]\w*$/.test(name) ? name : JSON.stringify(name)),
};

const DATA_URL = `
async function dataUrl(path, mediaType) {
  return \`data:\${mediaType};base64,\${await readFile(path, "base64")}\`;
}
`;

export function javascript({ base, body, needsKey }: CodeRequest): string {
  const files = readsFiles(body);
  const key = needsKey ? `process.env.${KEY_VARIABLE}` : '"none"';
  const calls = body["tools"] ? CALLS : "";
  return `${files ? 'import { readFile } from "node:fs/promises";\n' : ""}import OpenAI from "openai"; // npm install openai
${files ? DATA_URL : ""}
const client = new OpenAI({ baseURL: ${JSON.stringify(base)}, apiKey: ${key} });
const stream = await client.chat.completions.create(${literal(body, JAVASCRIPT)});
for await (const chunk of stream) {
  for (const choice of chunk.choices) {
    process.stdout.write(choice.delta.content ?? "");
${calls}  }
}
`;
}

const CALLS = `    for (const call of choice.delta.tool_calls ?? []) {
      process.stdout.write(\`\${call.function.name ?? ""} \${call.function.arguments ?? ""}\`);
    }
`;
