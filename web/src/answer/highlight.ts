/** Colours for code. */

import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import python from "highlight.js/lib/languages/python";

const LANGUAGES = { bash, javascript, json, python };
for (const [name, language] of Object.entries(LANGUAGES)) hljs.registerLanguage(name, language);

/** The HTML of code, in which all that is code is escaped. Languages that are not known have no colours. */
export function highlighted(code: string, language: string): string {
  const known = hljs.getLanguage(language) ? language : "plaintext";
  if (known === "plaintext") return code.replace(/[&<>]/g, (each) => ({ "&": "&amp;", "<": "&lt;" })[each] ?? "&gt;");
  return hljs.highlight(code, { language: known, ignoreIllegals: true }).value;
}
