"""Reading the pickles that training libraries write, without running any code that they name."""
