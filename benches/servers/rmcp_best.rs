//! `rmcp-best`: the fastest arrangement of rmcp found: the router built once and kept in a field, non-blocking pipes, one thread.

use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::{ServerHandler, ServiceExt, schemars, tool, tool_handler, tool_router, transport};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct TextRequest {
    text: String,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct SizeRequest {
    size: usize,
}

struct Echo {
    tool_router: ToolRouter<Self>,
}

#[tool_router]
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

#[tool_handler(router = self.tool_router)]
impl ServerHandler for Echo {}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let service = Echo { tool_router: Echo::tool_router() }.serve(transport::io::stdio_pipes()).await?;
    service.waiting().await?;
    Ok(())
}
