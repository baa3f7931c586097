// Serves the page that document 003 prints as its webpack would: modules without their endings,
// styles as modules, and what the printed configuration says of /api. Prints its port.
//
//   node page_proxy.mjs FOLDER

import { readFile } from "node:fs/promises";
import { createServer, request } from "node:http";
import { extname, join } from "node:path";
import { pathToFileURL } from "node:url";

const folder = process.argv[2];
const { default: config } = await import(pathToFileURL(join(folder, "webpack.config.mjs")));
const [[prefix, rule]] = Object.entries(config.devServer.proxy);
const [[pattern, replacement]] = Object.entries(rule.pathRewrite);

function passOn(asked, answer) {
  const url = new URL(asked.url.replace(new RegExp(pattern), replacement), rule.target);
  const headers = { ...asked.headers, host: url.host };
  const upstream = request(url, { method: asked.method, headers }, (given) => {
    rule.on.proxyRes(given);
    answer.writeHead(given.statusCode, given.headers);
    given.pipe(answer);
  });
  upstream.on("error", () => answer.destroy());
  answer.on("close", () => upstream.destroy());
  asked.pipe(upstream);
}

async function serveFile({ url }, answer) {
  const name = url === "/" ? "/index.html" : url + (extname(url) ? "" : ".js");
  const text = await readFile(join(folder, name), "utf8");
  const style = `document.head.append(Object.assign(document.createElement("style"),
    { textContent: ${JSON.stringify(text)} }));`;
  const type = name.endsWith(".html") ? "text/html" : "text/javascript";
  answer.writeHead(200, { "content-type": `${type}; charset=utf-8` });
  answer.end(name.endsWith(".css") ? style : text);
}

const server = createServer((asked, answer) =>
  (asked.url.startsWith(prefix) ? passOn : serveFile)(asked, answer));
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
