// Builds the playground.
//
//   node build.js [FOLDER]     the page's files, into FOLDER or ternvl/server/playground/
//   node build.js --tests      the tests of its parts, and a program that prints grids, into build/

import { copyFile, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { build } from "esbuild";

const HERE = import.meta.dirname;
const OUTPUT = join(HERE, "..", "ternvl", "server", "playground");
const BUNDLED = ["preact", "@preact/signals", "@preact/signals-core", "marked", "dompurify", "highlight.js"];

async function page(folder) {
  await mkdir(folder, { recursive: true });
  await build({
    entryPoints: { app: join(HERE, "src/main.tsx"), style: join(HERE, "src/style/main.css") },
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    charset: "utf8",
    legalComments: "none",
    jsx: "automatic",
    jsxImportSource: "preact",
    outdir: folder,
  });
  for (const name of ["index.html", "icon.svg"]) await copyFile(join(HERE, "src", name), join(folder, name));
  await writeFile(join(folder, "licenses.txt"), await licenses());
}

/** The licences of all that is part of app.js, as they ask for. */
async function licenses() {
  const texts = [];
  for (const name of BUNDLED) {
    const folder = join(HERE, "node_modules", name);
    const { version, license } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
    const file = (await readdir(folder)).find((each) => /^licen[sc]e(\.md|\.txt)?$/i.test(each));
    const text = license.includes("Apache-2.0") ? "Used under the Apache License 2.0." : await readFile(join(folder, file), "utf8");
    texts.push(`${name} ${version} (${license})\n\n${text.replaceAll("\r\n", "\n").trim()}\n`);
  }
  return texts.join(`\n${"-".repeat(80)}\n\n`);
}

async function tests() {
  const entryPoints = ["all.ts", "tiling.ts"].map((name) => join(HERE, "test", name));
  const outdir = join(HERE, "build");
  await build({ entryPoints, outdir, bundle: true, platform: "node", format: "esm", logLevel: "warning" });
}

const [argument] = process.argv.slice(2);
if (argument === "--tests") await tests();
else await page(argument ? resolve(argument) : OUTPUT);
