/** Reads JSON, an array of [width, height, least, most, side], and prints the array of their grids. */

import { readFileSync } from "node:fs";
import { grid } from "../src/images/tiling.ts";

const cases = JSON.parse(readFileSync(0, "utf8")) as [number, number, number, number, number][];
process.stdout.write(JSON.stringify(cases.map((each) => grid(...each))));
