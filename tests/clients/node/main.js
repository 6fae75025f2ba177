// Runs the verb that the command line names with the JSON on the standard input, and prints what it gives as JSON.
import { text as whole } from "node:stream/consumers";

export async function main(verbs) {
  const asked = JSON.parse(await whole(process.stdin));
  const result = await verbs[process.argv[2]](asked);
  process.stdout.write(JSON.stringify(result));
}
