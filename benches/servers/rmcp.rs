//! `rmcp`: an echo server as the official Rust SDK documents it: tool macros, `stdio()`, the default runtime.

use rmcp::handler::server::wrapper::Parameters;
use rmcp::{ServiceExt, schemars, tool, tool_router, transport};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct EchoRequest {
    text: String,
}

struct Echo;

#[tool_router(server_handler)]
impl Echo {
    #[tool(description = "Returns the text.")]
    fn echo(&self, Parameters(EchoRequest { text }): Parameters<EchoRequest>) -> String {
        assert!(text != "please panic", "asked to panic");
        text
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let service = Echo.serve(transport::stdio()).await?;
    service.waiting().await?;
    Ok(())
}
