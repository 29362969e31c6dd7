class PhoneOpus < Formula
  desc "Lets one coding agent phone another, in jobs that survive crashes"
  homepage "@HOMEPAGE@"
  url "@DOWNLOADS@/@FILE@"
  sha256 "@SHA256@"
  license any_of: ["MIT", "Apache-2.0"]

  depends_on "rust" => :build

  def install
    system "cargo", "install", *std_cargo_args(features: "full")
    generate_completions_from_executable(bin/"phone-opus", "completions")
    man1.mkpath
    system bin/"phone-opus", "man", man1
  end

  test do
    (testpath/"kettle.md").write "The kettle boils the water.\n"
    assert_match "kettle.md", shell_output("#{bin}/phone-opus consult --agent offline 'what boils the water?'")
  end
end
