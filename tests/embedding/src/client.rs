//! An MCP client on any two streams, as short as one can be.
//!
//! Owns: the lines of one connection. May not know: what is on the other side.

use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, Lines, ReadHalf, WriteHalf,
};

use crate::Problem;

pub struct McpClient<S> {
    answers: Lines<BufReader<ReadHalf<S>>>,
    requests: WriteHalf<S>,
    last: u64,
}

impl<S: AsyncRead + AsyncWrite> McpClient<S> {
    /// After the handshake.
    pub async fn greeting(stream: S) -> Result<Self, Problem> {
        let (answers, requests) = tokio::io::split(stream);
        let mut client = Self { answers: BufReader::new(answers).lines(), requests, last: 0 };
        let hello = json!({"protocolVersion": "2025-11-25", "capabilities": {},
            "clientInfo": {"name": "embedding", "version": "1"}});
        client.ask("initialize", &hello).await?;
        client.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await?;
        Ok(client)
    }

    pub async fn call(&mut self, tool: &str, arguments: Value) -> Result<Value, Problem> {
        self.ask("tools/call", &json!({"name": tool, "arguments": arguments})).await
    }

    pub async fn ask(&mut self, method: &str, params: &Value) -> Result<Value, Problem> {
        self.last += 1;
        let id = self.last;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})).await?;
        while let Some(line) = self.answers.next_line().await? {
            let message: Value = serde_json::from_str(&line)?;
            if message["id"] == id {
                return Ok(message);
            }
        }
        Err(format!("the connection ended before {method} was answered").into())
    }

    async fn send(&mut self, message: &Value) -> Result<(), Problem> {
        Ok(self.requests.write_all(format!("{message}\n").as_bytes()).await?)
    }
}
