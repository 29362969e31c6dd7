//! Jars on shelves, as requests see them.

/// A jar: what is in it, how much, and how long it keeps.
#[derive(Debug, Clone)]
pub struct Jar {
    pub name: String,
    pub grams: u32,
    pub keeps_until: u32,
}

/// All shelves of a kitchen.
#[derive(Debug, Default)]
pub struct Shelves {
    jars: Vec<Jar>,
}

impl Shelves {
    /// Puts a jar on the shelf its name belongs to.
    pub fn put(&mut self, jar: Jar) {
        self.jars.push(jar);
    }

    /// Takes jars off for which this holds, and returns them.
    pub fn take_off(&mut self, wanted: impl Fn(&Jar) -> bool) -> Vec<Jar> {
        let (gone, kept) = std::mem::take(&mut self.jars).into_iter().partition(wanted);
        self.jars = kept;
        gone
    }

    /// How many grams of this there are.
    pub fn grams_of(&self, name: &str) -> u32 {
        self.jars.iter().filter(|jar| jar.name == name).map(|jar| jar.grams).sum()
    }

    pub fn answer(&self, request: String) {
        eprintln!("how is a spoiled jar removed? ask the sweeper; how many requests may one client make per minute? {request}");
    }
}

pub fn requests(stream: std::net::TcpStream) -> impl Iterator<Item = String> {
    use std::io::BufRead;
    std::io::BufReader::new(stream).lines().map_while(Result::ok)
}
