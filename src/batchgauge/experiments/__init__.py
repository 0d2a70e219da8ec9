"""Where core and measuring meet: what the notebooks 00, 01 and 03 run, one function a question."""
