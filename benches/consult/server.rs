//! Server: `mcp serve` in a world, spoken to line by line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::Trouble;
use crate::world::World;

pub(crate) struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    asked: u64,
}

impl Server {
    pub(crate) fn start(program: &Path, world: &World, max_running: usize) -> Result<Self, Trouble> {
        let mut child = Command::new(program)
            .args(["mcp", "serve"])
            .env_clear()
            .envs(world.variables())
            .env("PHONE_OPUS_MAX_RUNNING", max_running.to_string())
            .env("PHONE_OPUS_MAX_QUEUED", "10000")
            .current_dir(world.path("work"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".into());
        };
        let mut server = Self { child, input: Some(input), output: BufReader::new(output), asked: 0 };
        let id = server.send(
            "initialize",
            &json!({"protocolVersion": "2025-11-25", "capabilities": {},
            "clientInfo": {"name": "bench", "version": "1"}}),
        )?;
        server.answer(id)?;
        server.write(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))?;
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn write(&mut self, message: &Value) -> Result<(), Trouble> {
        let input = self.input.as_mut().ok_or("stopped")?;
        input.write_all(format!("{message}\n").as_bytes())?;
        Ok(input.flush()?)
    }

    fn send(&mut self, method: &str, params: &Value) -> Result<u64, Trouble> {
        self.asked += 1;
        let id = self.asked;
        self.write(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))?;
        Ok(id)
    }

    fn next(&mut self) -> Result<Value, Trouble> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("the server is gone".into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn answer(&mut self, id: u64) -> Result<Value, Trouble> {
        loop {
            let message = self.next()?;
            if message["id"] == json!(id) {
                return Ok(message);
            }
        }
    }

    fn ask(&mut self, prompt: &str, background: bool) -> Result<u64, Trouble> {
        let arguments = json!({"prompt": prompt, "background": background, "render": "json", "wait_s": 300});
        self.send("tools/call", &json!({"name": "consult", "arguments": arguments}))
    }

    /// One answer.
    pub(crate) fn consult(&mut self, prompt: &str) -> Result<(), Trouble> {
        let id = self.ask(prompt, false)?;
        let answer = self.answer(id)?;
        succeeded(&answer)
    }

    /// One job that goes on by itself.
    pub(crate) fn background(&mut self, prompt: &str) -> Result<(), Trouble> {
        let id = self.ask(prompt, true)?;
        let answer = self.answer(id)?;
        if answer["result"]["isError"] == json!(true) { Err(answer.to_string().into()) } else { Ok(()) }
    }

    /// So many answers, all asked for before the first is read.
    pub(crate) fn consults_at_once(&mut self, count: usize) -> Result<(), Trouble> {
        let first = self.asked + 1;
        for _ in 0..count {
            self.ask("hello", false)?;
        }
        let mut left = count;
        while left > 0 {
            let message = self.next()?;
            if message["id"].as_u64().is_some_and(|id| id >= first) {
                succeeded(&message)?;
                left -= 1;
            }
        }
        Ok(())
    }

    /// The client hangs up, and the server ends.
    pub(crate) fn stop(mut self) -> Result<(), Trouble> {
        self.input = None;
        self.child.wait()?;
        Ok(())
    }
}

fn succeeded(answer: &Value) -> Result<(), Trouble> {
    if answer["result"]["structuredContent"]["status"] == json!("succeeded") {
        Ok(())
    } else {
        Err(answer.to_string().into())
    }
}
