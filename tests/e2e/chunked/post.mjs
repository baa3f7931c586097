// Posts a file from a stream, so in chunks; prints the status, then the answer.
import { createReadStream } from "node:fs";
import { Readable } from "node:stream";

const [url, path, type] = process.argv.slice(2);
const body = Readable.toWeb(createReadStream(path, { highWaterMark: 7 }));
const headers = { "Content-Type": type };
const answer = await fetch(url, { method: "POST", headers, body, duplex: "half" });
console.log(answer.status);
console.log(await answer.text());
