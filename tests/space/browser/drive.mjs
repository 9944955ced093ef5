// Opens a built page in Chromium as a reader does, and prints what was seen as JSON.
// node drive.mjs CHROMIUM PAGE_FOLDER SCREENSHOTS_FOLDER < sentences.json

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { chromium } from "playwright-core";

const [executablePath, folder, screenshots] = process.argv.slice(2);
const TYPES = { ".html": "text/html", ".mjs": "text/javascript", ".js": "text/javascript", ".css": "text/css", ".json": "application/json" };
const requests = [];
const errors = [];
const seen = {};

function serve() {
  const server = createServer(async (request, response) => {
    const name = normalize(new URL(request.url, "http://localhost").pathname).replace(/\/$/, "/index.html");
    try {
      const body = await readFile(join(folder, name));
      response.writeHead(200, { "content-type": TYPES[extname(name)] ?? "application/octet-stream" }).end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  return new Promise((resolve) => server.listen(0, "localhost", () => resolve(server)));
}

async function open(browser, address, options = {}) {
  const context = await browser.newContext(options);
  context.on("request", (request) => requests.push(request.url()));
  const page = await context.newPage();
  page.on("pageerror", (error) => errors.push(`${error}`));
  page.on("console", (message) => { if (message.type() === "error") errors.push(message.text()); });
  await page.goto(address);
  return page;
}

// The answer to `text`, once the words have their colours.
async function answered(page, text) {
  await page.waitForFunction((wanted) => {
    const words = document.getElementById("words");
    const copy = words.cloneNode(true);
    copy.querySelectorAll(".unseen").forEach((each) => each.remove());
    return words.dataset.complete === "true" && copy.textContent === wanted;
  }, text, { timeout: 60_000 });
  return page.evaluate(() => ({
    label: document.getElementById("label").textContent,
    score: Number(document.getElementById("score").value),
    words: [...document.querySelectorAll("#words mark")].map((mark) => mark.firstChild.textContent),
    effects: [...document.querySelectorAll("#words mark")].map((mark) => Number(mark.dataset.effect)),
    inhibition: [...document.querySelectorAll("#matrix tbody tr")].map((row) => [...row.querySelectorAll("td")].map((cell) => Number(cell.dataset.z))),
    cut: document.getElementById("cut").hidden ? null : document.getElementById("cut").textContent,
  }));
}

async function ask(page, text) {
  await page.fill("#text", text);
  return answered(page, text);
}

const focused = (page) => page.evaluate(() => document.activeElement.id || document.activeElement.textContent);

async function keyboard(page) {
  await page.focus("#text");
  const stops = [];
  for (let press = 0; press < 6; press++) {
    await page.keyboard.press("Tab");
    stops.push(await focused(page));
  }
  for (let press = 0; press < 5; press++) await page.keyboard.press("Shift+Tab");
  const example = await focused(page);
  await page.keyboard.press("Enter");
  const { inhibition } = await answered(page, example);
  for (let press = 0; press < 3; press++) await page.keyboard.press("Tab");
  await page.keyboard.press("ArrowUp");
  const other = await answered(page, example);
  return { stops, example, layer: await page.inputValue("#layer"), changed: JSON.stringify(inhibition) !== JSON.stringify(other.inhibition) };
}

const fits = (page) => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);

const sentences = JSON.parse(await readFile("/dev/stdin", "utf8"));
const server = await serve();
const address = `http://localhost:${server.address().port}/`;
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
try {
  const begin = performance.now();
  const page = await open(browser, address, { viewport: { width: 1000, height: 1000 } });
  await page.waitForSelector("#answer:visible, #problem:visible");
  if (await page.isVisible("#problem")) throw new Error(await page.textContent("#problem"));
  seen.first_answer_seconds = (performance.now() - begin) / 1000;
  seen.answers = [];
  for (const text of sentences) seen.answers.push(await ask(page, text));
  await page.fill("#text", "");
  await page.waitForFunction(() => document.getElementById("result").hidden);
  seen.nothing = await page.textContent("#status");
  await page.focus("#text");
  await page.keyboard.type("Typed letter by letter, and not good.");
  seen.typed = await answered(page, "Typed letter by letter, and not good.");
  await page.screenshot({ path: join(screenshots, "light.png"), fullPage: true });
  seen.keyboard = await keyboard(page);

  const phone = await open(browser, address, { viewport: { width: 360, height: 740 }, colorScheme: "dark", hasTouch: true, isMobile: true });
  await ask(phone, sentences[0]);
  seen.phone_fits = [await fits(phone)];
  await phone.screenshot({ path: join(screenshots, "phone-dark.png"), fullPage: true });
  await ask(phone, sentences.reduce((one, other) => (one.length < other.length ? other : one)));
  seen.phone_fits.push(await fits(phone));
  seen.dark = await phone.evaluate(() => { const { color, backgroundColor } = getComputedStyle(document.body); return { color, backgroundColor }; });

  await page.waitForFunction(() => document.getElementById("offline").textContent !== "");
  seen.offline_line = await page.textContent("#offline");
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
  await page.reload();
  seen.offline = await ask(page, sentences[0]);
} finally {
  await browser.close();
}

const again = await serve();
const bare = await chromium.launch({ executablePath, args: ["--no-sandbox", "--js-flags=--jitless"] });
try {
  const before = errors.length;
  const page = await open(bare, `http://localhost:${again.address().port}/`);
  await page.waitForSelector("#problem", { state: "visible" });
  seen.without_webassembly = await page.textContent("#problem");
  errors.length = before;
} finally {
  await bare.close();
  again.closeAllConnections();
  again.close();
}
console.log(JSON.stringify({ ...seen, errors, hosts: [...new Set(requests.map((url) => new URL(url).host.replace(/:\d+$/, "")))] }));
