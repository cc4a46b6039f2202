from zmesh import Worker


class Parse(Worker):
    def forward(self, data):
        return data
