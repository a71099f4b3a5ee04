// Node: an answer, a stream, an error.  npm install openai;  node openai_node.mjs [MODEL] [QUESTION]
import OpenAI from "openai";

const [model = "demo", question = "Hello"] = process.argv.slice(2);
const client = new OpenAI({
  baseURL: process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:8000/v1",
  apiKey: process.env.OPENAI_API_KEY ?? "none",
});
const messages = [{ role: "user", content: question }];

const answer = await client.chat.completions.create({
  model,
  messages,
  top_k: 40, // what OpenAI's API has no word for; TypeScript needs a `// @ts-expect-error` above it
});
console.log("answer:", answer.choices[0].message.content);

process.stdout.write("stream: ");
const stream = await client.chat.completions.create({ model, messages, stream: true });
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
}
console.log();

try {
  await client.chat.completions.create({ model: "no-such-model", messages });
} catch (problem) {
  if (!(problem instanceof OpenAI.APIError)) throw problem;
  console.log("error:", problem.status, problem.type, problem.code);
}
