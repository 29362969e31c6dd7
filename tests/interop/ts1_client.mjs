// The TypeScript SDK 1 (`@modelcontextprotocol/sdk`) as a client of phone-opus; run by run_all.py. See checks.mjs.
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { CallToolResultSchema, TaskStatusNotificationSchema } from '@modelcontextprotocol/sdk/types.js';
import { run, say, script, server, until } from './checks.mjs';

async function connect(more) {
  const client = new Client({ name: 'ts1', version: '1' }, { capabilities: {} });
  const errors = [];
  const over = [];
  client.onerror = error => errors.push(error.message);
  client.setNotificationHandler(TaskStatusNotificationSchema, note => void over.push(note.params));
  const transport = new StdioClientTransport(server(more));
  let version;
  transport.setProtocolVersion = wanted => (version = wanted);
  await client.connect(transport);
  return {
    client, errors, over, version, instructions: client.getInstructions(),
    list: async () => (await client.listTools()).tools,
    call: (name, args, options) => client.callTool({ name, arguments: args }, undefined, options),
    close: () => client.close(),
  };
}

async function tasks({ client, over }) {
  const tasks = client.experimental.tasks;
  const call = prompt => tasks.callToolStream({ name: 'consult', arguments: { prompt } }, CallToolResultSchema, { task: { ttl: 60_000 } });
  const heard = [];
  let result;
  for await (const message of call(script({ answer: 'by and by', steps: [{ delay_ms: 300 }] }))) {
    heard.push(message.type === 'taskStatus' ? message.task.status : message.type);
    if (message.type === 'result') result = message.result;
  }
  say('tasks', 'created, polled, fetched', heard[0] === 'taskCreated' && heard.at(-1) === 'result' && result.structuredContent.response === 'by and by', heard.join(', '));
  let task;
  const ends = [];
  for await (const message of call(script({ steps: ['hang'] }))) {
    if (message.type === 'taskCreated') {
      task = message.task.taskId;
      const cancelled = await tasks.cancelTask(task);
      ends.push(cancelled.status);
    }
    if (message.type === 'taskStatus') ends.push(message.task.status);
  }
  say('tasks', 'cancelled', ends.length >= 2 && ends.every(end => end === 'cancelled'), ends.join(', '));
  const { tasks: listed } = await tasks.listTasks();
  say('tasks', 'listed', listed.some(one => one.taskId === task), `${listed.length} tasks`);
  await until('both ends are told', () => over.length === 2);
  const states = over.map(one => one.status).join(', ');
  say('tasks', 'their ends are told', states === 'completed, cancelled', states);
}

const subscribe = async () => say('subscribe', 'listen', null, 'of 2026-07-28 only');

await run({ connect, version: '2025-11-25', tasks, subscribe });
