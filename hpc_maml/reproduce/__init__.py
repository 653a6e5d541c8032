"""Published tables, reproduced: experiments as files, their runs, and the pages they come to."""
