//! `rmcp`: an echo server (with `sink` and `blob`) as the official Rust SDK documents it: tool macros, `stdio()`, the default runtime.

use rmcp::handler::server::wrapper::Parameters;
use rmcp::{ServiceExt, schemars, tool, tool_router, transport};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct TextRequest {
    text: String,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct SizeRequest {
    size: usize,
}

struct Echo;

#[tool_router(server_handler)]
impl Echo {
    #[tool(description = "Returns the text.")]
    fn echo(&self, Parameters(TextRequest { text }): Parameters<TextRequest>) -> String {
        assert!(text != "please panic", "asked to panic");
        text
    }

    #[tool(description = "Returns the length of the text.")]
    fn sink(&self, Parameters(TextRequest { text }): Parameters<TextRequest>) -> String {
        text.len().to_string()
    }

    #[tool(description = "Returns a text of that size.")]
    fn blob(&self, Parameters(SizeRequest { size }): Parameters<SizeRequest>) -> String {
        "x".repeat(size)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let service = Echo.serve(transport::stdio()).await?;
    service.waiting().await?;
    Ok(())
}
