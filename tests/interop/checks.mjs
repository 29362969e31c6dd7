// What every TypeScript client is put through. Each client brings an adapter: how it connects and what its calls are named.
//
// argv: era, server program, environment as JSON, working directory. Prints one JSON line per check:
// [cell, name, true | false | null, detail]; null means that the client cannot do it, the detail says why.
import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';

export const [ERA, PROGRAM, ENVIRONMENT, WORK] = [process.argv[2], process.argv[3], JSON.parse(process.argv[4]), process.argv[5]];
/** Whether the server is a daemon behind a bridge. */
const BRIDGED = process.env.INTEROP_DOOR === 'bridge';

export function say(cell, name, good, detail = '') {
  console.log(JSON.stringify([cell, name, good === null ? null : Boolean(good), String(detail)]));
}

export const script = steps => `@@script ${JSON.stringify(steps)} @@`;

/** Waits until `look` finds something, for 20 s at most. */
export async function until(what, look) {
  const end = Date.now() + 20_000;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > end) throw new Error(`waited in vain until ${what}`);
    await pause(20);
  }
}

const sign = name => join(WORK, `${name}-${ERA}`);
const response = result => result.structuredContent?.response;
const text = result => result.content[0].text;

/** A server's parameters, with more variables than all servers get. */
export const server = (more = {}) => ({
  command: PROGRAM, args: ['mcp', BRIDGED ? 'connect' : 'serve'], env: { ...ENVIRONMENT, ...more }, cwd: WORK, stderr: 'ignore',
});

/**
 * `connect(more)` gives {version, errors, list(), call(tool, arguments, options), close()} for a server with more variables;
 * `tasks(session)` and `subscribe(session)` make their own checks.
 */
export async function run({ connect, version, tasks, subscribe }) {
  let session = await connect();
  if (process.env.INTEROP_HANG) {
    // To be killed in the middle of a consult.
    return session.call('consult', { prompt: script({ steps: [{ touch: process.env.INTEROP_HANG }, 'hang'] }) });
  }
  if (process.env.INTEROP_UPGRADE) return upgrade(session, JSON.parse(process.env.INTEROP_UPGRADE));
  say('connect', 'version', session.version === version, session.version);
  say('connect', 'instructions', session.instructions?.length < 600 && session.instructions.includes('consult_job'), `${session.instructions?.length} characters`);
  const names = (await session.list()).map(tool => tool.name);
  say('list', 'tools', names.length === 6 && names[0] === 'consult', names.join(', '));

  const consult = (prompt, options) => session.call('consult', { prompt }, options);
  let seen = await consult(script({ answer: 'forty-two', steps: [{ tool_use: 'Grep' }] }));
  say('call', 'consult', response(seen) === 'forty-two' && text(seen).includes('forty-two') && !seen.isError, seen.structuredContent.status);
  // Until 2025-06-18 it is a protocol error.
  seen = await session.call('consult', { prompt: ' ', bogus: 1 }).catch(error => error);
  const refusal = version < '2025-11-25' ? seen.code === -32602 && seen.message : seen.isError && text(seen);
  say('call', 'bad arguments: the model can read why', refusal?.includes('bogus'), refusal);
  // Half of a pair, as JavaScript makes it when a string is cut.
  seen = await consult(`${script({ answer: 'half' })} \ud83d`);
  say('call', 'a prompt that was cut in the middle of a character', response(seen) === 'half', response(seen));
  seen = await session.call('consult', { prompt: script({ answer: 'in the end', steps: [{ delay_ms: 2500 }] }), wait_s: 1 });
  const { status, job_id } = seen.structuredContent;
  seen = await session.call('consult_job', { job_id, wait_s: 20 });
  say('call', 'one that outlasts its wait is read on', status === 'running' && response(seen) === 'in the end', status);
  seen = await consult(script({ answer: 'x', result: { is_error: true, api_error_status: 529 } }));
  say('call', 'agent fails: a result with its fault', seen.isError && seen.structuredContent.fault.code === 'agent_overloaded', seen.structuredContent.fault.code);
  const unknown = await session.call('no_such_tool', {}).then(() => ({}), error => error);
  say('call', 'unknown tool: an error', unknown.code === -32602, unknown.message);

  // Several at once on one connection; quick calls do not wait for the slow ones.
  let began = Date.now();
  const slow = [0, 1, 2].map(n => consult(script({ answer: `answer ${n}`, steps: [{ wait_for_file: sign('go') }] })));
  const quick = await Promise.all(Array.from({ length: 17 }, () => session.call('consult_jobs', {})));
  const took = Date.now() - began;
  const waited = await Promise.race([Promise.any(slow).then(() => false), pause(0).then(() => true)]);
  writeFileSync(sign('go'), '');
  const answers = (await Promise.all(slow)).map(response);
  say('parallel', '3 consults and 17 quick calls', waited && quick.every(one => !one.isError) && answers.join() === 'answer 0,answer 1,answer 2', `quick ones within ${took} ms`);

  // The client's own cancel: its call is forgotten, and the agent behind it is ended.
  const abort = new AbortController();
  const gone = consult(script({ steps: [{ touch: sign('here') }, 'hang'] }), { signal: abort.signal }).then(() => null, error => error);
  await until('the agent runs', () => existsSync(sign('here')));
  began = Date.now();
  abort.abort('enough');
  const refused = await gone;
  const ended = await until('the job is cancelled', async () =>
    (await session.call('consult_jobs', {})).structuredContent.jobs.find(job => job.status === 'cancelled'));
  say('cancel', 'the call and its job end', refused !== null && ended, `${Date.now() - began} ms`);
  const handle = await session.call('consult', { prompt: script({ steps: ['hang'] }), background: true });
  seen = await session.call('consult_cancel', { job_id: handle.structuredContent.job_id });
  say('cancel', 'a job by its id', seen.structuredContent.status === 'cancelled', seen.structuredContent.status);

  const told = [];
  seen = await consult(script({ answer: 'slow', steps: [{ delay_ms: 3500 }] }), { onprogress: one => told.push(one) });
  const rising = told.every((one, at) => at === 0 || one.progress > told[at - 1].progress);
  say('progress', 'rises while the call runs', told.length >= 2 && rising && response(seen) === 'slow', told.at(-1)?.message);

  await tasks(session);
  await subscribe(session);
  // An answer that came too late, or that the client could not place, would be told here.
  say('cancel', 'the client has no complaint', session.errors.length === 0, session.errors.join('; '));
  began = Date.now();
  await session.close();
  // It sends a signal after two seconds.
  say('shutdown', 'the end of input is enough', Date.now() - began < 1900, `${Date.now() - began} ms`);

  if (BRIDGED) say('worker crash', 'by a plan', null, "the plan of faults is the daemon's and no client's");
  for (const [name, more] of BRIDGED ? [] : [
    ['panic', { PHONE_OPUS_MCP_TEST_WORKER_CRASH_ONCE_KEY: 'tools/call:consult' }],
    ['SIGKILL of its process', { PHONE_OPUS_ISOLATION: 'process', PHONE_OPUS_FAULTS: 'worker.before_reply@tools/call:consult=kill' }],
  ]) {
    session = await connect(more);
    const log = join(WORK, `${name.slice(0, 5)}-${ERA}`);
    seen = await session.call('consult', { prompt: script({ answer: 'all the same', log }) });
    const runs = readFileSync(log, 'utf8').split('"event":"start"').length - 1;
    const health = (await session.call('health_snapshot', {})).structuredContent;
    say('worker crash', name, response(seen) === 'all the same' && health.worker_generation === 2 && runs === 1, `worker generation ${health.worker_generation}, ${runs} run`);
    await session.close();
  }

  session = await connect({ PHONE_OPUS_RESPONSE_CHARS: '400000' });
  const long = 'long '.repeat(75_000);
  seen = await session.call('consult', { prompt: script({ answer: long }) });
  say('call', 'an answer of 375 KB, in a line twice as long', response(seen)?.trim() === long.trim() && text(seen).includes(long.trim()), `${text(seen).length} characters`);
  await session.close();
}

/** The server is replaced by another build while the consult runs; whoever started us does that, once we noted some progress. */
async function upgrade(session, { script: steps, notes }) {
  const told = [];
  const seen = await session.call('consult', { prompt: script(steps) }, {
    onprogress: one => {
      told.push(one.progress);
      appendFileSync(notes, '.');
    },
  });
  say('upgrade', 'the answer arrives', response(seen) === steps.answer, response(seen));
  say('upgrade', 'progress goes on rising', told.length >= 2 && told.every((one, at) => at === 0 || one > told[at - 1]), told.join(', '));
  const { rollout } = (await session.call('health_snapshot', {})).structuredContent;
  say('upgrade', 'health tells of it', rollout.adopted === 1, JSON.stringify(rollout));
  const names = (await session.list()).map(tool => tool.name);
  const after = await session.call('consult', { prompt: script({ answer: 'after it' }) });
  say('upgrade', 'further calls', names.length === 6 && response(after) === 'after it', response(after));
  say('upgrade', 'the client has no complaint', session.errors.length === 0, session.errors.join('; '));
  await session.close();
}
