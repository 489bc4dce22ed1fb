"""Learning algorithms: losses and updates of Stages 0, 1 and 2. They know no environment, file or logger."""
