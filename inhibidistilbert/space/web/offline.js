// The service worker: keeps one whole build, and answers from it alone.

importScripts("files.js"); // BUILD, a digest, and FILES; another build changes it, so browsers see that there is one
const PREFIX = "inhibidistilbert-";
const NAME = PREFIX + self.BUILD;

self.addEventListener("install", (event) => {
  // Past the browser's own cache, or files of two builds could meet.
  event.waitUntil(caches.open(NAME).then((cache) => cache.addAll(self.FILES.map((file) => new Request(file, { cache: "no-cache" })))));
});

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    const old = (await caches.keys()).filter((name) => name.startsWith(PREFIX) && name !== NAME);
    await Promise.all(old.map((name) => caches.delete(name)));
    await self.clients.claim();
  })());
});

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  event.respondWith((async () => {
    const cache = await caches.open(NAME);
    return (await cache.match(event.request, { ignoreSearch: true })) ?? fetch(event.request);
  })());
});
