// The TypeScript SDK 2 (`@modelcontextprotocol/client`, tasks by `@modelcontextprotocol/ext-tasks`) as a client of phone-opus;
// run by run_all.py. See checks.mjs.
import { Client } from '@modelcontextprotocol/client';
import { StdioClientTransport } from '@modelcontextprotocol/client/stdio';
import { createTaskSessionFromClient, resultFromTaskOutcome, toolDeclarationFromMcpTool } from '@modelcontextprotocol/ext-tasks/client';
import { ERA, run, say, script, server } from './checks.mjs';

const INFO = { name: 'ts2', version: '1' };
// An era may also be the date of an older version, which is then the only one the client knows.
const OLD = /^\d/.test(ERA);
const VERSION = OLD ? ERA : ERA === 'legacy' ? '2025-11-25' : '2026-07-28';
const MODE = { auto: 'auto', modern: { pin: VERSION } }[ERA] ?? 'legacy';

/** Requests past the SDK, whose codecs know no tasks of 2026-07-28: ext-tasks wants the host to bring this. */
function rawly(transport) {
  const waiting = new Map();
  const inner = transport.onmessage;
  let next = 0;
  transport.onmessage = (message, extra) => {
    const settle = waiting.get(message.id);
    if (!settle) return inner.call(transport, message, extra);
    waiting.delete(message.id);
    settle(message.error ? { kind: 'error', error: message.error } : { kind: 'result', result: message.result });
  };
  return request => new Promise((settle, fail) => {
    const id = `raw:${next++}`;
    waiting.set(id, settle);
    transport.send({ jsonrpc: '2.0', id, ...request }).catch(fail);
  });
}

async function connect(more) {
  const client = new Client(INFO, { capabilities: {}, versionNegotiation: { mode: MODE }, ...(OLD ? { supportedProtocolVersions: [ERA] } : {}) });
  const errors = [];
  client.onerror = error => errors.push(error.message);
  const transport = new StdioClientTransport(server(more));
  await client.connect(transport);
  return {
    client, transport, errors, version: client.getNegotiatedProtocolVersion(), instructions: client.getInstructions(),
    list: async () => (await client.listTools()).tools,
    call: async (name, args, options) => {
      // Before 2025-06-18 a result is nothing but text, which is asked for as JSON and stands in for the structure.
      const bare = VERSION < '2025-06-18' && name !== 'no_such_tool';
      const result = await client.callTool({ name, arguments: bare ? { ...args, render: 'json' } : args }, options);
      if (!bare) return result;
      if (result.structuredContent) throw new Error('structure in a version that has none');
      return { ...result, structuredContent: JSON.parse(result.content[0].text) };
    },
    close: () => client.close(),
  };
}

async function tasks({ client, transport, list }) {
  if (OLD) return say('tasks', 'tasks', null, 'not in this version');
  const framing = { rawDispatch: rawly(transport), v2RequestFraming: { protocolVersion: VERSION, clientInfo: INFO, clientCapabilities: {} } };
  const session = createTaskSessionFromClient(client, { endpointId: 'phone-opus', ...(ERA === 'legacy' ? {} : framing) });
  const declaration = toolDeclarationFromMcpTool((await list()).find(tool => tool.name === 'consult'));
  const call = prompt => session.callTool('consult', { prompt }, { declaration, task: { preference: 'prefer' } });
  const execution = await call(script({ answer: 'by and by', steps: [{ delay_ms: 300 }] }));
  const { outcome, lastTask } = await execution.settle();
  const result = resultFromTaskOutcome(outcome);
  say('tasks', 'created, polled, fetched', lastTask?.status === 'completed' && result.structuredContent.response === 'by and by', lastTask?.status);
  const hanging = await call(script({ steps: ['hang'] }));
  await hanging.cancel();
  const end = await hanging.settle().then(settled => settled.outcome.status, error => error.constructor.name);
  say('tasks', 'cancelled', end === 'cancelled' || end === 'TaskCancelledError', end);
  await session.close();
}

async function subscribe({ client }) {
  if (OLD || ERA === 'legacy') return say('subscribe', 'listen', null, 'of 2026-07-28 only');
  const subscription = await client.listen({ toolsListChanged: true });
  say('subscribe', 'acknowledged', subscription.honoredFilter.toolsListChanged, JSON.stringify(subscription.honoredFilter));
  await subscription.close();
}

await run({ connect, version: VERSION, tasks, subscribe });
