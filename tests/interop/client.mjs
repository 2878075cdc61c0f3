// Drives the real @supabase/ssr: one JSON request a line in, one JSON answer a line out.
import { createServerClient, parseCookieHeader, serializeCookieHeader } from "@supabase/ssr";
import { createInterface } from "node:readline";

const operations = {
  key: (auth) => ({ data: auth.storageKey, error: null }),
  session: (auth) => auth.getSession(),
  set: (auth, tokens) => auth.setSession(tokens),
  claims: (auth, token) => auth.getClaims(token),
  signOut: (auth) => auth.signOut(),
};

async function answer({ url, cookie, operation, argument, options }) {
  const lines = [];
  const headers = {};
  const cookies = {
    ...options?.cookies,
    getAll: () => parseCookieHeader(cookie ?? ""),
    setAll: (written, more) => {
      Object.assign(headers, more);
      for (const { name, value, options } of written) {
        lines.push(serializeCookieHeader(name, value, options));
      }
    },
  };
  // Older versions of node have no WebSocket, and no test here needs one.
  const realtime = { transport: class {} };
  const client = createServerClient(url, "key", { ...options, realtime, cookies });
  const { data, error } = await operations[operation](client.auth, argument);
  return { data, error: error && String(error.message), lines, headers };
}

for await (const line of createInterface({ input: process.stdin })) {
  const answered = await answer(JSON.parse(line)).catch((thrown) => ({ thrown: String(thrown) }));
  process.stdout.write(JSON.stringify(answered) + "\n");
}
